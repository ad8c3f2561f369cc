#!/usr/bin/env python3
"""Makes tests/golden/resized: adapters that PEFT saves of a model whose embeddings were resized or are adapted, and what the model then gives.

Needs torch, transformers and PEFT 0.21. For a model with tied embeddings and one without: plain LoRA, beside which PEFT keeps the
embeddings, LoRA that trains head, embeddings, or both as one, and LoRA on head and embeddings, with and without the base's beside it.
"""
import json
import os
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "resized")
IDS = [1, 41, 5, 40, 7, 41]
ON_EMBEDDINGS = {
    "lora_head": dict(target_modules=["q_proj", "lm_head"]),
    "lora_embeddings": dict(target_modules=["embed_tokens"]),
    "lora_both": dict(target_modules=["q_proj", "lm_head", "embed_tokens"], use_rslora=True, rank_pattern={"lm_head": 3}),
    "lora_both_bare": dict(target_modules=r".*(embed_tokens|lm_head)", alpha_pattern={"embed_tokens": 3}),
    "lora_both_resized": dict(target_modules=["lm_head", "model.embed_tokens"]),
    "dora_both": dict(target_modules=["lm_head", "embed_tokens"], use_dora=True),
    "lora_tied": dict(target_modules=["q_proj", "lm_head"], ensure_weight_tying=True),
}


def save(model, base, name, resized, save_embedding_layers="auto"):
    """Writes the adapter and what PEFT makes of it once it has loaded it."""
    model.save_pretrained(f"{base}/{name}", save_embedding_layers=save_embedding_layers)
    os.remove(f"{base}/{name}/README.md")
    with open(f"{base}/{name}/adapter_config.json", encoding="utf-8") as file:
        config = json.load(file)
    config["base_model_name_or_path"] = "base"
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    with open(f"{base}/{name}/adapter_config.json", "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    again = LlamaForCausalLM.from_pretrained(f"{base}/base")
    if resized:
        again.resize_token_embeddings(42)
    again = PeftModel.from_pretrained(again, f"{base}/{name}").eval()
    ids = IDS if resized else [one % 40 for one in IDS]
    with torch.no_grad():
        logits = again(torch.tensor([ids])).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    with open(f"{base}/{name}/expected.json", "w", encoding="utf-8") as file:
        json.dump({"ids": ids, "logprobs": logprobs.tolist()}, file)
        file.write("\n")


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for tied in (True, False):
        torch.manual_seed(7)
        base = f"{FOLDER}/{'tied' if tied else 'untied'}"
        LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
                                     tie_word_embeddings=tied)).save_pretrained(f"{base}/base")
        for name, saved in (("lora", None), ("head", ["lm_head"]), ("embeddings", ["embed_tokens"]), ("both", ["embed_tokens", "lm_head"])):
            model = LlamaForCausalLM.from_pretrained(f"{base}/base")
            model.resize_token_embeddings(42)
            config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=saved, init_lora_weights=False,
                                ensure_weight_tying=tied and name == "both")
            model = get_peft_model(model, config)
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if parameter.requires_grad and "modules_to_save" in key:
                        parameter.add_(torch.randn_like(parameter) * 0.2)
            save(model, base, name, resized=True)
        for name, options in ON_EMBEDDINGS.items():
            if name == "lora_tied" and not tied:
                continue
            model = LlamaForCausalLM.from_pretrained(f"{base}/base")
            if name == "lora_both_resized":
                model.resize_token_embeddings(42)
            model = get_peft_model(model, LoraConfig(**({"r": 2, "lora_alpha": 4} | options)))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter) * 0.2)
            save(model, base, name, name == "lora_both_resized", name != "lora_both_bare")


if __name__ == "__main__":
    main()
