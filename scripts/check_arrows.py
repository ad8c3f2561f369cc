#!/usr/bin/env python3
"""Enforces which folder may include which, and that torch headers stay where torch is allowed."""

import pathlib
import re
import subprocess
import sys

# What each folder may include besides itself and the generated protocol ("retort/v1/...").
ALLOWED = {
    "proto": set(),
    "common": {"proto"},
    "storage": {"proto", "common"},
    "model": {"proto", "common"},
    "curate": {"proto", "common"},
    "coordinator": {"proto", "common", "storage"},
    "worker": {"proto", "common"},
    "teacher_gen": {"proto", "common", "model"},
    "student": {"proto", "common", "model"},
    "cli": {"proto", "common", "storage", "curate"},
    "bench": None,  # None: anything
    "tests": None,
}
TORCH_FOLDERS = ("model", "teacher_gen", "student", "tests/fuzz", "tests/model", "tests/teacher_gen", "tests/student", "tests/golden", "bench")
# The part of model/ that needs no torch (the retort_tokenizer library): distctl, which links none, may include it.
MODEL_WITHOUT_TORCH = ("model/sft_example.h", "model/tokenizer.h", "model/tokenizer_folder.h", "model/training_rows.h", "model/trl_example.h")
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|caffe2)/")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')


def main():
    files = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.cc", "*.h", "*.cu", "*.cuh"], check=True, capture_output=True, text=True).stdout.split()
    problems = []
    for name in files:
        path = pathlib.Path(name)
        if not path.exists():
            continue
        folder = path.parts[0]
        if folder not in ALLOWED:
            problems.append(f"{name}: no folder of that name in scripts/check_arrows.py")
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            quoted, target = match.group(1) == '"', match.group(2)
            if TORCH_HEADER.match(target) and not name.startswith(TORCH_FOLDERS):
                problems.append(f"{name}:{number}: {target}: torch headers belong to {', '.join(TORCH_FOLDERS)}")
            top = target.split("/")[0]
            if quoted and folder == "cli" and target in MODEL_WITHOUT_TORCH:
                continue
            if quoted and top in ALLOWED and top != folder and ALLOWED[folder] is not None and top not in ALLOWED[folder]:
                problems.append(f"{name}:{number}: {folder}/ may not include {target}; it may include {', '.join(sorted(ALLOWED[folder]))}")
            if quoted and ".." in target:
                problems.append(f"{name}:{number}: {target}: includes are written from the repository's root")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"check_arrows: {len(files)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
