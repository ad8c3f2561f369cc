#!/usr/bin/env python3
"""Runs `distctl score` and `distctl generate` on the models in families/ and compares with expected.json: log-probabilities, greedy tokens, and
where EOS ends them. Needs the programs alone.

    python tests/golden/check_families.py --bin-dir build/release/bin [--dtype bfloat16] [--device cuda] [--tensor-parallel-size 2] [NAME...]
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2}


def run(options, verb, model, rows, extra=()):
    """The verb's output lines, or the end of what it said on stderr."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = pathlib.Path(folder) / "in.jsonl", pathlib.Path(folder) / "out.jsonl"
        source.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
        command = [options.bin_dir / "distctl", verb, "--model", model, "--dtype", options.dtype, "--device", options.device,
                   "--input", source, "--output", output, *extra]
        if options.tensor_parallel_size > 1:
            command += ["--tensor-parallel-size", str(options.tensor_parallel_size)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            return [], (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [json.loads(line) for line in output.read_text().splitlines()], ""


def problems_of(options, model):
    """(largest difference of a log-probability, what is wrong)."""
    expected = json.loads((model / "expected.json").read_text())
    worst, problems = 0.0, []
    scored, error = run(options, "score", model, [one["token_ids"] for one in expected["sequences"]])
    if error:
        return worst, [error]
    sequences = expected["sequences"]
    if options.dtype == "bfloat16" and "bfloat16" in expected:
        sequences = [one | {"logprobs": logprobs} for one, logprobs in zip(sequences, expected["bfloat16"], strict=True)]
    for one, own in zip(sequences, scored, strict=True):
        if own.get("token_ids") != one["token_ids"] or len(own.get("logprobs", [])) != len(one["logprobs"]) or own["logprobs"][0] is not None:
            problems.append(f"score of {len(one['token_ids'])} tokens answers {json.dumps(own)[:200]}")
            continue
        worst = max([worst] + [abs(got - want) for got, want in zip(own["logprobs"][1:], one["logprobs"][1:])])
    if worst > TOLERANCE[options.dtype]:
        problems.append(f"log-probabilities differ by {worst:.1e}")
    if options.dtype != "float32":
        return worst, problems
    prompts = [one["prompt"] for one in expected["greedy"]]
    for extra in ([], ["--ignore-eos"]):
        made, error = run(options, "generate", model, prompts, ["--max-tokens", "32", "--temperature", "0", *extra])
        if error:
            return worst, problems + [error]
        for one, own in zip(expected["greedy"], made, strict=True):
            stop = None if extra else one["stop_at"]
            want, reason = one["token_ids"][:stop], "length" if stop is None else "stop"
            # An engine may leave the EOS itself out of the new tokens.
            if own["token_ids"] not in ([want] if stop is None else [want, want[:-1]]):
                first = next((i for i, pair in enumerate(zip(own["token_ids"], want)) if pair[0] != pair[1]), min(len(own["token_ids"]), len(want)))
                problems.append(f"greedy after {len(one['prompt'])} tokens departs at step {first} of {len(want)}")
            elif own["finish_reason"] != reason:
                problems.append(f"finish_reason {own['finish_reason']}, not {reason}")
    return worst, problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True)
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    root = pathlib.Path(__file__).parent / "families"
    models = [root / name for name in options.names] or sorted(path.parent for path in root.glob("*/expected.json"))
    failed = 0
    for model in models:
        worst, problems = problems_of(options, model)
        failed += bool(problems)
        print(f"{model.name:18} {'FAILED' if problems else 'ok':6} {worst:.1e} {'; '.join(problems)}", flush=True)
    print(f"{len(models)} models, {failed} failed")
    return 1 if failed or not models else 0


if __name__ == "__main__":
    sys.exit(main())
