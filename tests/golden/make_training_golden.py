#!/usr/bin/env python3
"""Writes training/: what transformers and PEFT compute for tiny random Llama models, for training_golden_test.

Each case is a folder: config.json, model.safetensors, adapter/ (PEFT, as it starts), batches.json (20 micro-batches of
rows of input_ids and labels), expected.json (loss of each AdamW step, learning rate, log-probabilities of one row) and
expected.safetensors (gradient of step 1, final adapter). Run where torch, transformers and peft are installed:
  python tests/golden/make_training_golden.py [FOLDER]
"""
import json
import math
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

STEPS = 20
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
CASES = {
    "tied": dict(config=dict(vocab_size=131, hidden_size=48, intermediate_size=88, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True,
                             max_position_embeddings=128, rms_norm_eps=1e-5,
                             rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
                 targets="all-linear", r=4),
    "untied_llama3": dict(config=dict(vocab_size=97, hidden_size=48, intermediate_size=72, num_hidden_layers=3,
                                      num_attention_heads=6, num_key_value_heads=2, head_dim=8,
                                      tie_word_embeddings=False, max_position_embeddings=256, rms_norm_eps=1e-6,
                                      attention_bias=True, mlp_bias=True,
                                      rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                       "original_max_position_embeddings": 32}),
                          targets=["q_proj", "v_proj", "down_proj"], r=3),
}


def make_batches(vocab_size):
    """Rows of odd lengths: with prompts that are not trained, of one token, and with nothing trained."""
    batches = []
    for _ in range(STEPS):
        rows = []
        for length in torch.randint(2, 41, (3,)).tolist():
            ids = torch.randint(0, vocab_size, (length,)).tolist()
            prompt = int(torch.randint(0, length, (1,)))
            rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
        one = int(torch.randint(0, vocab_size, (1,)))
        rows.append({"input_ids": [one], "labels": [one]})
        ids = torch.randint(0, vocab_size, (7,)).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * 7})
        batches.append(rows)
    return batches


def loss_sum(model, rows):
    """Sum of -ln p over trained tokens, row by row, and their number."""
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        if (labels != -100).any():
            total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            count += int((labels != -100).sum())
    return total, count


def short(name):
    return name.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".default")


def make_case(name, case, folder):
    torch.manual_seed(sum(map(ord, name)))
    config = LlamaConfig(**case["config"], bos_token_id=1, eos_token_id=2)
    base = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for key, parameter in base.named_parameters():
            parameter.normal_(1.0 if "norm" in key else 0.0, 0.1 if "embed" not in key else 0.5)
    if folder.exists():
        shutil.rmtree(folder)
    base.save_pretrained(folder)
    lora = LoraConfig(r=case["r"], lora_alpha=2 * case["r"] + 1, lora_dropout=0.0, target_modules=case["targets"],
                      task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(base, lora)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    (folder / "generation_config.json").unlink(missing_ok=True)

    batches = make_batches(config.vocab_size)
    scored = batches[0][0]["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([scored])).logits[0]
    logprobs = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(scored[1:])[:, None])[:, 0].tolist()

    trainable = {short(n): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=WEIGHT_DECAY)
    losses, tensors = [], {}
    for step, rows in enumerate(batches):
        total, count = loss_sum(model, rows)
        loss = total / count
        loss.backward()
        if step == 0:
            tensors.update({f"gradient.{n}": p.grad.clone() for n, p in trainable.items()})
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert math.isfinite(losses[-1])
    tensors.update({f"final.{n}": p.detach().clone() for n, p in trainable.items()})
    save_file(tensors, folder / "expected.safetensors")
    (folder / "batches.json").write_text(json.dumps(batches, separators=(",", ":")) + "\n")
    (folder / "expected.json").write_text(json.dumps(
        {"losses": losses, "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY,
         "logprobs": {"input_ids": scored, "values": logprobs}}, indent=1) + "\n")
    print(name, "loss", losses[0], "->", losses[-1])


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "training")
    for name, case in CASES.items():
        make_case(name, case, root / name)


if __name__ == "__main__":
    main()
