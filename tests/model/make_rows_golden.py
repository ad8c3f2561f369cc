#!/usr/bin/env python3
"""Makes data/rows_golden.json: what TRL's SFTTrainer trains of the kinds of rows that a job's dataset may hold, under the options
that mean the same there, and what transformers' add_tokens makes of a tokenizer.

Needs transformers 5.17 and TRL 1.16. Reads the tokenizer of data/tokenizer_golden.json and the templates of make_chat_golden.py.
"""
import json
import tempfile

import make_chat_golden as chat
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

CONVERSATION = [chat.user("Hi"), chat.assistant("one "), chat.user("step by"), chat.assistant("Hello 世界")]
COLUMNS = {"Question": "12 + 30?", "Complex_CoT": "so\n", "Response": "forty {two}", "n": "x"}
TEMPLATES = [("Q: {}\n<think>{}</think>{}", ["Question", "Complex_CoT", "Response"]),
             ("{{{Question}}} {n}: {}!", ["Response"]), ("{Response}", [])]
# Rows, and the options of the job: those of TRL's SFTConfig by the same names.
CASES = [
    ({"messages": CONVERSATION}, {"completion_only_loss": False}),
    ({"messages": CONVERSATION}, {"assistant_only_loss": True}),
    ({"prompt": CONVERSATION[:-1], "completion": CONVERSATION[-1:]}, {}),
    ({"prompt": CONVERSATION[:1], "completion": CONVERSATION[1:]}, {}),
    ({"prompt": CONVERSATION[:-1], "completion": CONVERSATION[-1:]}, {"completion_only_loss": False}),
    ({"prompt": CONVERSATION[:-1], "completion": CONVERSATION[-1:]}, {"assistant_only_loss": True}),
    ({"prompt": CONVERSATION[:1], "completion": CONVERSATION[1:]}, {"completion_only_loss": False, "assistant_only_loss": True}),
    ({"prompt": "Hello", "completion": " world"}, {}),
    ({"prompt": "Hello", "completion": " world"}, {"completion_only_loss": False}),
    ({"prompt": "x", "completion": "y<|im_end|>"}, {"completion_only_loss": True}),
    ({"text": "step by é"}, {}),
    ({"text": "step by<|im_end|>"}, {}),
    ({"input_ids": [5, 6, 7]}, {}),
    ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {}),
]
ADDED = [["<think>", "</think>"], ["Hello", "<think>", "<|im_end|>", "<think>"], ["x y", " lead", "世界"]]


def main():
    with open(f"{chat.DATA}/tokenizer_golden.json", encoding="utf-8") as file:
        base = json.load(file)
    golden = {"rows": [], "filled": [], "added": []}
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/tokenizer.json", "w", encoding="utf-8") as file:
            json.dump(base["tokenizer"], file)
        with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as file:
            json.dump({**base["config"], "tokenizer_class": "PreTrainedTokenizerFast"}, file)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                             num_key_value_heads=2, vocab_size=len(tokenizer)))
        for name in ("smollm2", "marked"):
            tokenizer.chat_template = chat.OWN[name]
            for row, options in CASES:
                if options.get("assistant_only_loss") and name != "marked":
                    continue
                golden["rows"].append({"template": chat.OWN[name], "row": row, "options": options,
                                       **chat.prepared(tokenizer, model, row, **options)})
        for template, fields in TEMPLATES:
            text = template.format(*[COLUMNS[field] for field in fields], **COLUMNS)
            golden["filled"].append({"template": template, "fields": fields, "row": COLUMNS,
                                     **chat.prepared(tokenizer, model, {"text": text})})
        for special in (False, True):
            for tokens in ADDED:
                grown = AutoTokenizer.from_pretrained(folder)
                # What is an added token already keeps its flags: add_tokens would change them.
                grown.add_tokens([token for token in tokens if token not in grown.get_added_vocab()], special_tokens=special)
                text = f"Hello{''.join(tokens)} x y  lead world"
                ids = grown(text)["input_ids"]
                golden["added"].append({"tokens": tokens, "special": special, "size": len(grown), "text": text, "ids": ids,
                                        "of_tokens": grown.convert_tokens_to_ids(tokens),
                                        "plain": grown.decode(ids, skip_special_tokens=True)})
    with open(f"{chat.DATA}/rows_golden.json", "w", encoding="utf-8") as file:
        json.dump(golden, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
