#!/usr/bin/env python3
"""Writes data/peft_adapter/: a LoRA adapter as PEFT saves it, on a small random Llama, and the start of each module's delta.

With a folder as argument it does the reverse: loads base/ and adapter/ (which lora_test leaves in $RETORT_ROUND_TRIP_FOLDER) in PEFT, and compares
PEFT's merge with merged/. Needs torch, transformers and peft.
"""

import json
import os
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def small_llama():
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=2, max_position_embeddings=32))


def main():
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "peft_adapter")
    base = small_llama()
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=7, lora_dropout=0.1, target_modules=["q_proj", "down_proj"],
                                            task_type="CAUSAL_LM"))
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn_like(parameter))
    model.save_pretrained(folder)
    readme = os.path.join(folder, "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    deltas = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            delta = module.get_delta_weight("default")
            deltas[name.removeprefix("base_model.model.")] = [round(value, 6) for value in delta.detach().flatten()[:5].tolist()]
    with open(os.path.join(folder, "deltas.json"), "w", encoding="utf-8") as file:
        json.dump(deltas, file, indent=1)
        file.write("\n")


def check(folder):
    base = AutoModelForCausalLM.from_pretrained(f"{folder}/base", dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, f"{folder}/adapter")
    ids = torch.arange(1, 9).unsqueeze(0)
    expected = peft(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(f"{folder}/merged", dtype=torch.float32)
    difference = (merged(ids).logits - expected).abs().max().item()
    changed = (expected - AutoModelForCausalLM.from_pretrained(f"{folder}/base", dtype=torch.float32)(ids).logits).abs().max().item()
    print(f"largest difference {difference:.2e}, the adapter's own effect {changed:.2e}")
    sys.exit(0 if difference < 1e-4 < changed else 1)


if __name__ == "__main__":
    check(sys.argv[1]) if len(sys.argv) > 1 else main()
