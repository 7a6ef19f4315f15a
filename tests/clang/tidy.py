#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs clang-tidy with the repository's .clang-tidy over every compiled source of ours.

    tests/clang/tidy.py BUILD_FOLDER      last line: "N clean, N with findings"

A source that was clean is not looked at again until it, a header of ours that it includes, its
command or .clang-tidy changes; what was clean is remembered in the cache folder, as ccache does.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

ROOMS = ("common", "kernels", "worker", "router", "operator", "cli", "tests")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
ROOT = pathlib.Path.cwd()


def cache_folder() -> pathlib.Path:
    base = os.environ.get("REMPART_CACHE") or pathlib.Path.home() / ".cache" / "rempart"
    return pathlib.Path(base) / "clang-tidy"


def closure(source: pathlib.Path) -> list[pathlib.Path]:
    """The source, every file of ours that it includes, and the schemas of generated headers."""
    seen, unread = set(), [source]
    while unread:
        path = unread.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for name in INCLUDE.findall(path.read_text(encoding="utf-8", errors="replace")):
            unread.append(ROOT / re.sub(r"(\.grpc)?\.pb\.h$", ".proto", name))
    return sorted(seen)


def key_of(source: pathlib.Path, command: str) -> str:
    digest = hashlib.sha256(re.sub(re.escape(str(ROOT)), "", command).encode())
    for path in [ROOT / ".clang-tidy", *closure(source)]:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def findings(build: str, source: pathlib.Path, command: str) -> str:
    stamp = cache_folder() / key_of(source, command)
    if stamp.exists():
        return ""
    run = subprocess.run(["clang-tidy-14", "--quiet", "-p", build, str(source)],
                         capture_output=True, text=True)
    if run.returncode == 0:
        stamp.touch()
        return ""
    return run.stdout + run.stderr


def main() -> int:
    build = sys.argv[1]
    cache_folder().mkdir(parents=True, exist_ok=True)
    commands = {}
    for entry in json.loads(pathlib.Path(build, "compile_commands.json").read_text()):
        source = pathlib.Path(entry["file"])
        if source.is_relative_to(ROOT) and source.relative_to(ROOT).parts[0] in ROOMS:
            commands[source] = entry["command"]
    clean = broken = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(findings, build, source, command): source
                   for source, command in commands.items()}
        for done in concurrent.futures.as_completed(running):
            if text := done.result():
                broken += 1
                print(f"{running[done].relative_to(ROOT)}:\n{text}")
            else:
                clean += 1
    print(f"{clean} clean, {broken} with findings")
    return 1 if broken or not clean else 0


if __name__ == "__main__":
    sys.exit(main())
