#!/usr/bin/env python3
"""Whether transformers and PEFT find in an adapter with added tokens, and in its merged model, what Retort finds.

check_added_tokens.py BIN BASE ADAPTER MERGED TEXT...: the adapter that a job with student.add_tokens left (output_dir/adapter), its
merged f32 folder, and texts that hold the tokens. Needs transformers and PEFT. Compares tokenizers, log-probabilities through PEFT
and `distctl score`, and the merged model's.
"""
import json
import subprocess
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

LIMIT = 2e-4


def scores(binary, texts, *arguments):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    run = subprocess.run([f"{binary}/distctl", "score", *arguments, "--dtype", "float32", "--input", "-", "--output", "-"], input=rows,
                         capture_output=True, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


@torch.no_grad()
def log_probabilities(model, ids):
    logits = model(torch.tensor([ids])).logits[0].float()
    return torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def compare(name, model, rows):
    worst = max((log_probabilities(model, row["token_ids"]) - torch.tensor(row["logprobs"][1:])).abs().max().item() for row in rows)
    print(f"{name}: largest difference {worst:.2e}")
    return worst <= LIMIT


def main():
    binary, base, adapter, merged, *texts = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    with open(f"{adapter}/tokenizer.json", encoding="utf-8") as file:
        added = {token["content"] for token in json.load(file)["added_tokens"]}
    grown = AutoTokenizer.from_pretrained(base)
    new = sorted((token for token in added if token not in grown.get_vocab()), key=tokenizer.convert_tokens_to_ids)
    grown.add_tokens(new)
    good = bool(new) and len(grown) == len(tokenizer) and grown.get_vocab() == tokenizer.get_vocab()
    good &= grown.chat_template == tokenizer.chat_template and grown.special_tokens_map == tokenizer.special_tokens_map
    good &= AutoTokenizer.from_pretrained(merged).get_vocab() == tokenizer.get_vocab()
    rows = scores(binary, texts, "--model", base, "--adapter", adapter)
    good &= [row["token_ids"] for row in rows] == [grown(text)["input_ids"] for text in texts] == [tokenizer(text)["input_ids"] for text in texts]
    print("tokenizers:", "equal" if good else "DIFFERENT", new)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    good &= compare("PEFT", PeftModel.from_pretrained(model, adapter).eval(), rows)
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    good &= compare("merged, transformers", whole, rows)
    good &= compare("merged, Retort", whole, scores(binary, texts, "--model", merged))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
