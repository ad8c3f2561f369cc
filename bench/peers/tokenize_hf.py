#!/usr/bin/env python3
"""`distctl tokenize` beside the tokenizers package on the same texts, one and two threads, in turns, in one run.

usage: tokenize_hf.py DISTCTL MODEL TEXTS.jsonl [--rounds N]

Both are given the JSONL file of {"text"} and write a JSONL file of {"text", "token_ids"}; the package's share without reading
and writing JSON (encode_batch, encode_batch_fast) is shown apart. Ids are compared.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

CHILD = """
import json, sys, time
from tokenizers import Tokenizer
model, texts, output, call = sys.argv[1:5]
tokenizer = Tokenizer.from_file(model + "/tokenizer.json")
tokenizer.no_truncation()
tokenizer.no_padding()
rows = [json.loads(line)["text"] for line in open(texts, encoding="utf-8")]
start = time.perf_counter()
encoded = getattr(tokenizer, call)(rows)
seconds = time.perf_counter() - start
with open(output, "w", encoding="utf-8") as file:
    for text, one in zip(rows, encoded):
        file.write(json.dumps({"text": text, "token_ids": one.ids}, ensure_ascii=False) + "\\n")
print(seconds)
"""


def run_package(model, texts, output, call, threads):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, model, texts, output, call], env=environment, check=True,
                          capture_output=True, text=True)
    return time.perf_counter() - start, float(done.stdout)


def run_distctl(distctl, model, texts, output, threads):
    start = time.perf_counter()
    subprocess.run([distctl, "tokenize", "--model", model, "--input", texts, "--output", output, "--threads", str(threads)], check=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("distctl")
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with open(arguments.texts, encoding="utf-8") as file:
        size = sum(len(json.loads(line)["text"].encode()) for line in file) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = f"{folder}/ours.jsonl", f"{folder}/theirs.jsonl"
        best = {}
        for _ in range(arguments.rounds):
            for threads in (1, 2):
                whole = run_distctl(arguments.distctl, arguments.model, arguments.texts, ours, threads)
                best.setdefault((threads, "distctl tokenize, whole"), []).append(whole)
                for call in ("encode_batch", "encode_batch_fast"):
                    whole, alone = run_package(arguments.model, arguments.texts, theirs, call, threads)
                    best.setdefault((threads, f"{call}, whole program"), []).append(whole)
                    best.setdefault((threads, f"{call}, the call alone"), []).append(alone)
        with open(ours, encoding="utf-8") as a, open(theirs, encoding="utf-8") as b:
            same = all(json.loads(x)["token_ids"] == json.loads(y)["token_ids"] for x, y in zip(a, b))
    print(f"{size:.1f} MB; ids {'equal' if same else 'DIFFER'}")
    for (threads, what), seconds in sorted(best.items()):
        print(f"{threads} thread(s)  {what:36} {min(seconds):7.2f} s {size / min(seconds):7.2f} MB/s")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
