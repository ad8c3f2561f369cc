#!/usr/bin/env python3
"""Gives the programs some seven hundred model folders, adapters, templates, GGUF files and rows that lie: each must end with exit code 1 or 2 and a
clear error (of a row: in its place), without a crash, in bounded time and memory. Needs the programs alone.

    python tests/model/check_hostile_models.py --bin-dir build/release/bin [--match TEXT] [--jobs 2]
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from hostile_inputs import ROWS, all_cases  # noqa: E402

MODEL = pathlib.Path(__file__).resolve().parents[1] / "golden" / "families" / "llama_mha"
SECONDS = 120
ADDRESS_SPACE = 24 << 30  # libtorch maps gigabytes that it never touches; what runs away ends here
RESIDENT, RESIDENT_OF_LONG_TEXTS = 1 << 30, 3 << 30
UNCLEAR = re.compile(r"terminate called|std::|c10::|Exception raised from|Segmentation|AddressSanitizer|runtime error:|panicked at|CHECK failed")


def command_of(options, verb, folder, extra):
    command = [str(options.bin_dir / "distctl"), verb]
    if "--model" not in extra:
        command += ["--model", str(folder)]
    if verb != "tokenize":
        command += ["--dtype", "float32", "--device", "cpu"]
    if verb == "generate":
        command += ["--max-tokens", "4", "--temperature", "0"]
    if "--input" not in extra:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        command += ["--input", str(folder / "rows.jsonl")]
    return command + extra + ["--output", str(folder / "out.jsonl")]


def run(command, folder):
    """(exit code or a signal's negative number, stderr, seconds, bytes resident at most)."""
    def limits():
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    started = time.monotonic()
    with open(folder / "stderr", "wb") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, preexec_fn=limits, start_new_session=True)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.monotonic() - started
        if pid != 0:
            process.returncode = os.waitstatus_to_exitcode(status)
            break
        if seconds > SECONDS:
            os.killpg(process.pid, 9)
            os.wait4(process.pid, 0)
            return None, "", seconds, 0
        time.sleep(0.01)
    return process.returncode, (folder / "stderr").read_text(errors="replace"), seconds, usage.ru_maxrss * 1024


def problem_of(options, case):
    """(what is wrong or nothing, what the program said)."""
    name, spoil, verb, may_pass = case
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "model"
        shutil.copytree(MODEL, folder)
        extra = spoil(folder) or []
        code, text, seconds, resident = run(command_of(options, verb, folder, extra), folder)
        output = folder / "out.jsonl"
        inline = output.exists() and output.stat().st_size < 1 << 20 and '"error"' in output.read_text(errors="replace")
    said = text.strip().splitlines()[-1][:200] if text.strip() else ""
    if code is None:
        return f"runs for more than {SECONDS} s", said
    if code < 0 or code >= 128:
        return f"dies of signal {-code if code < 0 else code - 128}", said
    if UNCLEAR.search(text):
        return f"speaks of its insides (exit code {code})", said
    if resident > (RESIDENT_OF_LONG_TEXTS if "100 MB" in name or "million" in name else RESIDENT):
        return f"takes {resident >> 20} MiB", said
    if code == 0 and not may_pass:
        return "takes it for sound", said
    if code not in (0, 1, 2):
        return f"exit code {code}", said
    if code != 0 and not said and not inline:
        return "says nothing", said
    return "", said or ("in the row's place" if inline else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True)
    parser.add_argument("--match", default="", help="only cases with this in their name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="also what is said about each")
    options = parser.parse_args()
    problem, said = problem_of(options, ("nothing spoilt", lambda folder: None, "score", True))
    if problem or said:
        print(f"the sound model fails: {problem} {said}")
        return 1
    cases = [case for case in all_cases() if options.match in case[0]]
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for case, (problem, said) in zip(cases, pool.map(lambda case: problem_of(options, case), cases)):
            failed += bool(problem)
            if problem or options.verbose:
                print(f"{'FAILED' if problem else 'ok':6} {case[0]}: {problem} [{said}]", flush=True)
    print(f"{len(cases)} hostile inputs, {failed} failed")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
