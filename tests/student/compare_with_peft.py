#!/usr/bin/env python3
"""Trains the same adapter on the same batches with PEFT and with a local cluster, and compares: losses to 1e-4 of their value, tensors to 1e-4
of their largest. Needs torch, transformers, peft and safetensors.

    python tests/student/compare_with_peft.py --distctl build/release/bin/distctl --model examples/quickstart/base --workers 2
"""

import argparse
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, get_scheduler

STEPS, BATCH, ACCUMULATE, RATE, WARMUP, DECAY = 20, 2, 4, 1e-3, 2, 0.01


def rows_for(vocabulary):
    rng = random.Random(0)
    rows = []
    for _ in range(107):
        ids = [rng.randrange(1, vocabulary) for _ in range(rng.randint(5, 40))]
        ignored = rng.randint(0, len(ids) - 2)
        rows.append({"input_ids": ids, "labels": [-100] * ignored + ids[ignored:]})
    return rows


def train_with_peft(model_folder, folder):
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    rows = rows_for(base.config.vocab_size)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)
    model.save_pretrained(folder / "initial")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    steps_per_epoch = math.ceil(len(rows) / (BATCH * ACCUMULATE))
    points = []
    for step in range(STEPS):
        first = step % steps_per_epoch * BATCH * ACCUMULATE
        batch = rows[first : first + BATCH * ACCUMULATE]
        tokens = sum(label != -100 for row in batch for label in row["labels"][1:])
        loss = 0.0
        for row in batch:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            part = torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), ignore_index=-100, reduction="sum") / tokens
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        points.append((loss, scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "final")
    return points


def train_with_retort(distctl, model_folder, folder, workers):
    job = {
        "name": "compare-with-peft",
        "output_dir": str(folder / "out"),
        "dataset": [{"path": "rows.jsonl"}],
        "student": {
            "model_name_or_path": str(model_folder),
            "adapter_name_or_path": "initial",
            "device": "cpu",
            "training": {
                "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": ACCUMULATE, "learning_rate": RATE,
                "lr_scheduler_type": "cosine", "warmup_steps": WARMUP, "max_steps": STEPS, "max_grad_norm": 1.0,
                "weight_decay": DECAY, "shuffle": False, "logging_steps": 1,
            },
            "workers": {"min": workers, "max": workers},
        },
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    command = [distctl, "--state-dir", str(folder / "state")]
    try:
        subprocess.run(command + ["submit", "--local", "--watch", str(folder / "job.yaml")], check=True, stdin=subprocess.DEVNULL)
    finally:
        subprocess.run(command + ["local", "down"], check=False)
    return json.loads((folder / "out" / "result.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--distctl", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    model_folder = arguments.model.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        expected = train_with_peft(model_folder, folder)
        result = train_with_retort(arguments.distctl.resolve(), model_folder, folder, arguments.workers)
        losses = [(point["loss"], point["learning_rate"]) for point in result["losses"]]
        assert len(losses) == STEPS, losses
        worst_loss = max(abs(own[0] - other[0]) / other[0] for own, other in zip(losses, expected))
        worst_rate = max(abs(own[1] - other[1]) for own, other in zip(losses, expected))
        own, other = (load_file(folder / part / "adapter_model.safetensors") for part in ("out/adapter", "final"))
        assert own.keys() == other.keys()
        worst_tensor = max(((own[key] - other[key]).abs().max() / other[key].abs().max()).item() for key in other)
    print("losses differ by %.1e, tensors by %.1e of their largest value" % (worst_loss, worst_tensor))
    return 0 if worst_loss < 1e-4 and worst_rate < 1e-12 and worst_tensor < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
