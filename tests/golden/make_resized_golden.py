#!/usr/bin/env python3
"""Makes tests/golden/resized: adapters that PEFT saves of a model whose embeddings were resized, and what the model then gives.

Needs torch, transformers and PEFT 0.21. For a model with tied embeddings and one without: plain LoRA, beside which PEFT keeps the
embeddings, and LoRA that trains head, embeddings, or both as one.
"""
import json
import os
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "resized")
IDS = [1, 41, 5, 40, 7, 41]


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
            model.save_pretrained(f"{base}/{name}")
            os.remove(f"{base}/{name}/README.md")
            with open(f"{base}/{name}/adapter_config.json", encoding="utf-8") as file:
                config = json.load(file)
            config["base_model_name_or_path"] = "base"
            with open(f"{base}/{name}/adapter_config.json", "w", encoding="utf-8") as file:
                json.dump(config, file, indent=2)
                file.write("\n")
            again = LlamaForCausalLM.from_pretrained(f"{base}/base")
            again.resize_token_embeddings(42)
            again = PeftModel.from_pretrained(again, f"{base}/{name}").eval()
            with torch.no_grad():
                logits = again(torch.tensor([IDS])).logits[0].double()
            logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
            with open(f"{base}/{name}/expected.json", "w", encoding="utf-8") as file:
                json.dump({"ids": IDS, "logprobs": logprobs.tolist()}, file)
                file.write("\n")


if __name__ == "__main__":
    main()
