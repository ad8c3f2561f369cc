#!/usr/bin/env python3
"""Few kills, for every change: the quickstart's job on 1,500 prompts and 120 steps, undisturbed, with a teacher killed, and with three kills while
it trains. The traces and the adapter must be the same each time. chaos.py does the same with any number of kills on any job.

    tests/chaos/check_kills.py --bin-dir build/dev/bin
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "examples" / "quickstart"
PROMPTS = 1500
STEPS = 120
RUNS = {
    "undisturbed": ["--kills", "0"],
    "a teacher killed": ["--stage", "generate", "--kills", "1", "--gap", "0.2", "--victims", "teacher"],
    "three kills in training": ["--stage", "train", "--kills", "3", "--gap", "0.6"],
}


def run(arguments, name, flags, folder, prompts):
    command = [sys.executable, HERE / "chaos.py", "--bin-dir", arguments.bin_dir, "--state-dir", folder / "state", "--job", EXAMPLE / "job.yaml",
               "--seed", str(arguments.seed), "--timeout", "240", *flags]
    for setting in (f"output_dir={folder / 'out'}", f"prompts.0.path={prompts}", "teacher.batch_size=8", f"student.training.max_steps={STEPS}"):
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"{name}: exit code {done.returncode}: {done.stdout.strip()}", flush=True)
    if done.returncode != 0:
        print(done.stderr, flush=True)
        return None
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1, help="of victims and moments")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="retort-kills.") as scratch:
        prompts = pathlib.Path(scratch) / "prompts.jsonl"
        lines = (EXAMPLE / "prompts.jsonl").read_text().splitlines(keepends=True)
        prompts.write_text("".join(lines[:PROMPTS]))
        for name, flags in RUNS.items():
            folder = pathlib.Path(scratch) / name.replace(" ", "-")
            folder.mkdir()
            result = run(arguments, name, flags, folder, prompts)
            if result is None:
                return 1
            results[name] = {key: result[key] for key in ("adapter_sha256", "manifest_sha256")}
    if any(result != results["undisturbed"] or None in result.values() for result in results.values()):
        print("the results differ", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
