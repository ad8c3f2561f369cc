#!/usr/bin/env python3
"""Trains the adapters of tests/golden/peft as jobs on a local cluster and compares with what PEFT made of them: losses to 1e-4 of their value,
tensors to 1e-4 of their largest. Needs numpy and safetensors.

    python tests/student/check_peft_golden.py --bin-dir build/release/bin [--workers 2] [NAME...]
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from safetensors.numpy import load_file

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
TOLERANCE = 1e-4


def job_of(case, expected, output, workers):
    student = {"model_name_or_path": str(GOLDEN / "families" / expected["model"]), "device": "cpu", "workers": {"min": workers, "max": workers},
               "training": expected["training"] | {"shuffle": False, "logging_steps": 1}}
    if "lora" in expected:
        student["lora"] = expected["lora"]
    else:
        student["adapter_name_or_path"] = str(case / "adapter")
    return {"name": case.name.replace("_", "-"), "output_dir": str(output), "dataset": [{"path": str(case / "rows.jsonl")}], "student": student}


def problems_of(command, case, folder, workers):
    """(largest difference of a loss, of a tensor, what is wrong)."""
    expected = json.loads((case / "expected.json").read_text())
    output, path = folder / "out" / case.name, folder / f"{case.name}.yaml"
    path.write_text(json.dumps(job_of(case, expected, output, workers)))
    done = subprocess.run(command + ["submit", "--watch", str(path)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    if done.returncode != 0:
        return 0.0, 0.0, [line for line in done.stderr.strip().splitlines()][-1:]
    points = json.loads((output / "result.json").read_text())["losses"]
    problems = []
    if len(points) != len(expected["losses"]):
        return 0.0, 0.0, [f"{len(points)} losses, not {len(expected['losses'])}"]
    loss = max(abs(point["loss"] - want) / want for point, want in zip(points, expected["losses"]))
    rate = max(abs(point["learning_rate"] - want) for point, want in zip(points, expected["learning_rates"]))
    tensor = 0.0
    if (case / "expected.safetensors").exists():
        own, want = load_file(output / "adapter" / "adapter_model.safetensors"), load_file(case / "expected.safetensors")
        if own.keys() != want.keys():
            problems.append(f"the adapter lacks {sorted(want.keys() - own.keys())[:3]}, has beside them {sorted(own.keys() - want.keys())[:3]}")
        for key in own.keys() & want.keys():
            if own[key].shape != want[key].shape:
                problems.append(f"{key} has the shape {own[key].shape}, not {want[key].shape}")
                continue
            tensor = max(tensor, abs(own[key] - want[key]).max() / abs(want[key]).max())
    if loss > TOLERANCE:
        first = next(step for step, (point, want) in enumerate(zip(points, expected["losses"])) if abs(point["loss"] - want) > TOLERANCE * want)
        problems.append(f"losses differ, first at step {first + 1}")
    if tensor > TOLERANCE:
        problems.append("tensors differ")
    if rate > 1e-9:
        problems.append("learning rates differ")
    return loss, tensor, problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    cases = [GOLDEN / "peft" / name for name in options.names] or sorted(path.parent for path in (GOLDEN / "peft").glob("*/expected.json"))
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = [str((options.bin_dir / "distctl").resolve()), "--state-dir", str(folder / "state")]
        try:
            subprocess.run(command + ["local", "up"], check=True, capture_output=True, stdin=subprocess.DEVNULL)
            for case in cases:
                loss, tensor, problems = problems_of(command, case, folder, options.workers)
                failed += bool(problems)
                print(f"{case.name:24} {'FAILED' if problems else 'ok':6} loss {loss:.1e} tensor {tensor:.1e} {'; '.join(problems)}", flush=True)
        finally:
            subprocess.run(command + ["local", "down"], check=False, capture_output=True)
    print(f"{len(cases)} cases, {failed} failed")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
