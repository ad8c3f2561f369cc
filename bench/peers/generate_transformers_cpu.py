#!/usr/bin/env python3
"""Speed of transformers' generate() on the CPU: the peer of bench-generate.

Needs torch and transformers. Prints one JSON object with tokens_per_second (new tokens over total time, prefill included), the best of
--repeats runs after one that warms up.
"""
import argparse
import json
import resource
import time

import torch
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens-out", help="write the generated ids as JSON, for comparison")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    vocabulary = model.config.vocab_size
    prompts = torch.tensor([[(100 + 7919 * t + 104729 * i) % vocabulary for t in range(options.prompt_tokens)]
                            for i in range(options.batch_size)])

    def run(new_tokens):
        start = time.monotonic()
        with torch.inference_mode():
            out = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
                                 min_new_tokens=new_tokens, max_new_tokens=new_tokens)
        return time.monotonic() - start, out[:, options.prompt_tokens:]

    run(4)
    seconds, tokens = min((run(options.new_tokens) for _ in range(options.repeats)), key=lambda pair: pair[0])
    if options.tokens_out:
        with open(options.tokens_out, "w", encoding="utf-8") as out:
            json.dump(tokens.tolist(), out)
    print(json.dumps({
        "tokens_per_second": options.batch_size * options.new_tokens / seconds,
        "batch_size": options.batch_size,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))


if __name__ == "__main__":
    main()
