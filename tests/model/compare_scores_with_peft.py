#!/usr/bin/env python3
"""Loads an adapter in PEFT and compares its log-probabilities with those of `distctl score --adapter`: float32, 2e-4. Needs torch, transformers
and peft.

    python tests/model/compare_scores_with_peft.py --distctl build/release/bin/distctl --model examples/quickstart/base \\
        --adapter out/quickstart/adapter --rows out/quickstart/dataset/train.jsonl
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 2e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distctl", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--rows", type=pathlib.Path, required=True, help="JSONL with messages")
    parser.add_argument("--count", type=int, default=50)
    options = parser.parse_args()
    conversations = [json.loads(line)["messages"] for line in options.rows.read_text().splitlines()[:options.count]]

    with tempfile.TemporaryDirectory() as folder:
        source, output = pathlib.Path(folder) / "in.jsonl", pathlib.Path(folder) / "out.jsonl"
        source.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
        subprocess.run([options.distctl, "score", "--model", options.model, "--adapter", options.adapter, "--dtype", "float32", "--device", "cpu",
                        "--input", source, "--output", output], check=True)
        ours = [json.loads(line) for line in output.read_text().splitlines()]

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    with torch.no_grad():
        bare_model = base.eval()
        bare = [bare_model(torch.tensor([one["token_ids"]])).logits for one in ours[:1]][0].clone()
        model = PeftModel.from_pretrained(base, options.adapter).eval()
        worst, tokens = 0.0, 0
        for messages, one in zip(conversations, ours, strict=True):
            ids = tokenizer.apply_chat_template(messages, return_dict=False)
            if ids != one["token_ids"]:
                print(f"the template gives other tokens: {ids} against {one['token_ids']}")
                return 1
            logits = model(torch.tensor([ids])).logits
            theirs = torch.log_softmax(logits[0, :-1].double(), -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            worst = max(worst, (theirs - torch.tensor(one["logprobs"][1:], dtype=torch.float64)).abs().max().item())
            tokens += len(ids)
        moved = (model(torch.tensor([ours[0]["token_ids"]])).logits - bare).abs().max().item()
    print(json.dumps({"sequences": len(ours), "tokens": tokens, "worst_difference": worst, "adapter_moves_logits_by": moved}))
    return 0 if worst <= TOLERANCE and moved > 100 * TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
