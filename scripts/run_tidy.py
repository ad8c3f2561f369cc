#!/usr/bin/env python3
"""Runs clang-tidy on files of the dev build, two at a time, with the compile commands made fit for clang (no gcc precompiled headers)."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

BUILD = pathlib.Path("build/dev")
TIDY = pathlib.Path("build/tidy")


def clang_commands():
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    for entry in commands:
        words, kept, skip = entry["command"].split(" "), [], 0
        for position, word in enumerate(words):
            if skip:
                skip -= 1
            elif word == "-include" and "cmake_pch" in words[position + 1]:
                skip = 1
            elif word in ("-Winvalid-pch", "-fpch-preprocess", "-fuse-ld=mold"):
                pass
            else:
                kept.append(word)
        # The compiler launcher is not part of what clang should see.
        compiler = next(i for i, word in enumerate(kept) if word.endswith(("g++", "c++", "gcc", "cc", "clang++")))
        entry["command"] = " ".join(kept[compiler:])
    TIDY.mkdir(parents=True, exist_ok=True)
    (TIDY / "compile_commands.json").write_text(json.dumps(commands))
    return {os.path.relpath(entry["file"]) for entry in commands}


def tidy(name):
    result = subprocess.run(["clang-tidy", "-p", str(TIDY), "--quiet", "--warnings-as-errors=*", name], capture_output=True, text=True)
    return name, result.returncode, result.stdout


def main():
    known = clang_commands()
    files = [name for name in sys.argv[1:] if name in known]
    failed = False
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, code, output in pool.map(tidy, files):
            if code != 0:
                failed = True
                print(f"{name}:\n{output}")
    print(f"run_tidy: {len(files)} files, {'problems above' if failed else 'no problems'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
