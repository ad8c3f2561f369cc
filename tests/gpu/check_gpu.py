#!/usr/bin/env python3
"""Runs the quickstart's jobs on this machine's GPU and compares with its CPU. Python's standard library alone.

    tests/gpu/check_gpu.py --bin-dir build/cuda/bin --out-dir out/gpu

Checks, each printed as one JSON line: the daemon offers the GPU; the whole job runs on it and the student gains; training in float32 gives the
CPU's losses (1e-4 of their value, over 20 steps at a rate at which AdamW does not blow rounding up); two runs in bf16, one whose student is killed, and one of two ranks over NCCL,
give one adapter; greedy tokens in float32 are the CPU's and log-probabilities are within 2e-4 of it. Exit code 0: all of them hold.

The two ranks of the NCCL check share the GPU: a second daemon is started that offers it again, and NCCL_HOSTID makes NCCL take the two for
different hosts (it refuses two ranks on one GPU of one host), so that they talk over the network transport.
"""
import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "quickstart"
STEPS_COMPARED = 20


class Checks:
    def __init__(self, bin_dir, out_dir):
        self.bin_dir = bin_dir
        self.out_dir = out_dir
        self.failed = 0

    def say(self, check, holds, **facts):
        self.failed += not holds
        print(json.dumps({"check": check, "holds": bool(holds), **facts}), flush=True)

    def distctl(self, *words, **options):
        command = [str(self.bin_dir / "distctl"), "--state-dir", str(self.out_dir / "state"), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, **options)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} gave {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    @contextlib.contextmanager
    def second_worker(self):
        local = json.loads((self.out_dir / "state" / "local.json").read_text())
        worker = subprocess.Popen(
            [self.bin_dir / "retort-worker", "--state-dir", self.out_dir / "second", "--coordinator", f"127.0.0.1:{local['coordinator']['port']}",
             "--token-file", self.out_dir / "state" / "token"], env={**os.environ, "NCCL_HOSTID": "second"}, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            worker.terminate()
            worker.wait()

    def train(self, name, *settings):
        """result.json of the quickstart's training on the traces of the whole job, with its seconds."""
        output = self.out_dir / name
        words = [word for one in (f"output_dir={output}", f"dataset.0.path={self.out_dir / 'job' / 'dataset' / 'train.jsonl'}", *settings)
                 for word in ("--set", one)]
        self.distctl("submit", "--watch", "--overwrite", *words, EXAMPLE / "train.yaml")
        return json.loads((output / "result.json").read_text())

    def generated(self, verb, device, source, *words):
        output = self.out_dir / f"{verb}-{device}.jsonl"
        self.distctl(verb, "--model", EXAMPLE / "teacher", "--dtype", "float32", "--device", device, "--input", source, "--output", output, *words)
        return [json.loads(line) for line in output.read_text().splitlines()]


def relative(a, b):
    return abs(a - b) / max(abs(a), abs(b), 1e-30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True)
    parser.add_argument("--out-dir", type=pathlib.Path, required=True, help="where states and results go")
    arguments = parser.parse_args()
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    checks = Checks(arguments.bin_dir.resolve(), arguments.out_dir.resolve())

    checks.distctl("local", "up")
    try:
        workers = json.loads(checks.distctl("workers", "--json"))
        gpus = [gpu for worker in workers["workers"] for gpu in worker["gpus"]]
        checks.say("workers", gpus, gpus=gpus)

        start = time.monotonic()
        checks.distctl("submit", "--watch", "--overwrite", "--set", f"output_dir={checks.out_dir / 'job'}", EXAMPLE / "job.yaml")
        result = json.loads((checks.out_dir / "job" / "result.json").read_text())
        accuracies = result["accuracies"]
        checks.say("whole job", accuracies["student"] - accuracies["base"] >= 0.3, seconds=round(time.monotonic() - start, 1),
                   by_stage=result["seconds_by_stage"], **accuracies)

        every_step = "student.training.logging_steps=1"
        short = (f"student.training.max_steps={STEPS_COMPARED}", every_step, "student.training.bf16=false", "student.training.learning_rate=1.0e-4")
        cpu = checks.train("cpu-f32", "student.device=cpu", *short)
        gpu = checks.train("gpu-f32", "student.device=cuda", *short)
        differences = [relative(a["loss"], b["loss"]) for a, b in zip(cpu["losses"], gpu["losses"])]
        checks.say("float32 losses", max(differences) <= 1e-4 and len(differences) == STEPS_COMPARED, worst_relative=max(differences),
                   seconds={"cpu": cpu["seconds_by_stage"]["train"], "gpu": gpu["seconds_by_stage"]["train"]})

        runs = [checks.train(f"gpu-bf16-{i}", "student.device=cuda") for i in range(2)]
        checks.say("bf16 repeats", runs[0]["adapter_sha256"] == runs[1]["adapter_sha256"], adapter_sha256=runs[0]["adapter_sha256"],
                   last_loss=runs[0]["losses"][-1]["loss"], seconds=[run["seconds_by_stage"]["train"] for run in runs])

        with checks.second_worker():
            two = ("student.device=cuda", "student.workers.min=2", "student.workers.max=2")
            over_nccl = checks.train("nccl-tree", *two)
            logs = checks.distctl("logs", over_nccl["job"])
            checks.say("two ranks over NCCL", over_nccl["adapter_sha256"] == runs[0]["adapter_sha256"] and "gang_without_nccl" not in logs,
                       adapter_sha256=over_nccl["adapter_sha256"], seconds=over_nccl["seconds_by_stage"]["train"])
            all_reduce = checks.train("nccl-all-reduce", *two, "student.training.reduction=nccl", "student.training.deterministic=false")
            checks.say("ncclAllReduce", all_reduce["losses"][-1]["loss"] < 0.01, last_loss=all_reduce["losses"][-1]["loss"],
                       seconds=all_reduce["seconds_by_stage"]["train"])
    finally:
        checks.distctl("local", "down")

    chaos = subprocess.run(
        [sys.executable, ROOT / "tests" / "chaos" / "chaos.py", "--bin-dir", checks.bin_dir, "--state-dir", checks.out_dir / "chaos-state", "--job",
         EXAMPLE / "train.yaml", "--kills", "2", "--victims", "student", "--gap", "3", "--set", "student.device=cuda", "--set",
         f"dataset.0.path={checks.out_dir / 'job' / 'dataset' / 'train.jsonl'}", "--set", f"output_dir={checks.out_dir / 'chaos'}"],
        capture_output=True, text=True)
    told = json.loads(chaos.stdout) if chaos.stdout else {"problems": [chaos.stderr]}
    checks.say("killed students", chaos.returncode == 0 and told["adapter_sha256"] == runs[0]["adapter_sha256"], **told)

    prompts = checks.out_dir / "prompts.jsonl"
    questions = [json.loads(line)["question"] for line in (EXAMPLE / "test.jsonl").read_text().splitlines()][:100]
    prompts.write_text("".join(json.dumps({"messages": [{"role": "user", "content": question}]}) + "\n" for question in questions))
    cpu, gpu = (checks.generated("generate", device, prompts, "--max-tokens", 128) for device in ("cpu", "cuda"))
    differing = sum(a["token_ids"] != b["token_ids"] for a, b in zip(cpu, gpu))
    checks.say("greedy tokens", differing == 0 and len(gpu) == len(prompts.read_text().splitlines()), lines=len(gpu), differing=differing)
    cpu, gpu = (checks.generated("score", device, prompts) for device in ("cpu", "cuda"))
    worst = max(abs(a - b) for one, other in zip(cpu, gpu) for a, b in zip(one["logprobs"][1:], other["logprobs"][1:]))
    checks.say("log-probabilities", worst <= 2e-4, worst=worst)
    return 0 if checks.failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
