#!/usr/bin/env python3
"""Draws the problems of this example: reasoning-gym's chain_sum, sums and differences of two numbers of one or two digits.

    pip install reasoning-gym==0.1.25
    make_problems.py [--output DIR]

Writes prompts.jsonl (to learn from) and test.jsonl (held out: no expression stands in both).
"""

import argparse
import json
import pathlib

import reasoning_gym


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--prompts", type=int, default=640)
    parser.add_argument("--test", type=int, default=200)
    arguments = parser.parse_args()
    dataset = reasoning_gym.create_dataset("chain_sum", size=2000, seed=5, min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    seen, rows = set(), []
    for entry in dataset:
        expression = entry["metadata"]["expression"]
        if expression not in seen:
            seen.add(expression)
            rows.append({"question": entry["question"], "answer": entry["answer"]})
    for name, chosen in [("test.jsonl", rows[:arguments.test]), ("prompts.jsonl", rows[arguments.test:arguments.test + arguments.prompts])]:
        (arguments.output / name).write_text("".join(json.dumps(row) + "\n" for row in chosen))


if __name__ == "__main__":
    main()
