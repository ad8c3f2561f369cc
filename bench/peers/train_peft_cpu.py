#!/usr/bin/env python3
"""LoRA training on the CPU by transformers and PEFT: the peer of bench-train, with the same output.

Every position is trained, AdamW, f32, LoRA on all linear layers. Needs torch, transformers, peft.
"""
import argparse
import json
import resource
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    config = LoraConfig(r=args.lora_r, lora_alpha=2 * args.lora_r, lora_dropout=0.0, target_modules="all-linear",
                        task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)
    ids = torch.randint(0, base.config.vocab_size, (args.batch_size, args.sequence_length))
    seconds = []
    loss = None
    for _ in range(args.steps + 1):  # the first warms up
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    result = {
        "tokens_per_second": args.batch_size * args.sequence_length / statistics.median(seconds[1:]),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": float(loss.detach()),
        "step_seconds": seconds[1:],
        "threads": torch.get_num_threads(),
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['tokens_per_second']:.1f} tokens/s, loss {result['loss']:.4f}, "
              f"peak {result['peak_rss_bytes'] / 2**30:.2f} GiB, {result['threads']} threads")


if __name__ == "__main__":
    main()
