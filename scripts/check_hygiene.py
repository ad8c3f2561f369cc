#!/usr/bin/env python3
"""Refuses what must not be in the tree: unfinished or disabled code, files that hold two ideas, sources that CMake does not know, stray binaries."""

import pathlib
import re
import subprocess
import sys

MAX_LINES = 600
UNFINISHED = re.compile(r"DISABLED_|\bTODO\b|\bFIXME\b|\bXXX\b|not implemented|unimplemented!", re.IGNORECASE)
CODE = {".cc", ".h", ".cu", ".cuh", ".rs", ".py"}
MAX_BYTES = 4 << 20


def main():
    files = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.split("\n")
    problems = []
    listed = {}
    for name in filter(None, files):
        path = pathlib.Path(name)
        if not path.exists():
            continue
        if path.stat().st_size > MAX_BYTES:
            problems.append(f"{name}: {path.stat().st_size:,} bytes; keep large files out of the repository")
        if path.suffix not in CODE or name == "scripts/check_hygiene.py":
            continue
        lines = path.read_text().splitlines()
        if len(lines) > MAX_LINES:
            problems.append(f"{name}: {len(lines)} lines; over {MAX_LINES} it holds two ideas")
        for number, line in enumerate(lines, 1):
            if UNFINISHED.search(line):
                problems.append(f"{name}:{number}: unfinished or disabled: {line.strip()[:100]}")
        if path.suffix == ".cc":
            for folder in path.parents:
                cmake = folder / "CMakeLists.txt"
                if cmake.exists():
                    text = listed.setdefault(cmake, cmake.read_text())
                    relative = path.relative_to(folder).as_posix()
                    if relative not in text:
                        problems.append(f"{name}: not listed in {cmake}")
                    break
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"check_hygiene: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
