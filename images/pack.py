#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Packs programs and the shared libraries they link into a docker-archive image made from scratch.

Needs no daemon, no root and no base image. The same inputs give the same bytes: entries are sorted, owned by root,
dated at the epoch. What is inside: the files given, their libraries (as ldd resolves them), a passwd file with the one
user it runs as. No shell, no package manager, no certificate store.
"""
import argparse
import hashlib
import io
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

EPOCH = "1970-01-01T00:00:00Z"


def libraries(program: pathlib.Path) -> dict[str, pathlib.Path]:
    """The shared libraries of a program: path inside the image -> file here. Empty for a static program."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if "not a dynamic executable" in done.stdout + done.stderr or "statically linked" in done.stdout:
            return {}
        raise SystemExit(f"pack: ldd {program}: {done.stderr.strip()}")
    if "not found" in done.stdout:
        raise SystemExit(f"pack: {program} links libraries that are not here:\n{done.stdout}")
    found = {}
    for line in done.stdout.splitlines():
        match = re.match(r"\s*(?:(\S+) => )?(/\S+) \(0x", line)
        if match:
            found[match.group(2)] = pathlib.Path(match.group(2)).resolve()
    return found


def stripped(program: pathlib.Path) -> bytes:
    """The program without debug information and symbols."""
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run(["strip", "-o", out.name, str(program)], check=True)
        return pathlib.Path(out.name).read_bytes()


def layer(programs: list[tuple[pathlib.Path, str]], user: int) -> bytes:
    contents: dict[str, tuple[bytes, int]] = {}
    for source, destination in programs:
        contents[destination] = (stripped(source), 0o755)
        for inside, here in libraries(source).items():
            contents[inside] = (here.read_bytes(), 0o755)
    passwd = "root:x:0:0:root:/:/sbin/nologin\n"
    group = "root:x:0:\n"
    if user != 0:
        passwd += f"rempart:x:{user}:{user}:rempart:/:/sbin/nologin\n"
        group += f"rempart:x:{user}:\n"
    contents["/etc/passwd"] = (passwd.encode(), 0o644)
    contents["/etc/group"] = (group.encode(), 0o644)
    folders = {str(parent) for path in contents for parent in pathlib.PurePosixPath(path).parents} - {"/"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path in sorted(contents):
            data, mode = contents[path]
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="repository, for example rempart.dev/worker")
    parser.add_argument("--tag", help="default: the first 12 digits of the layer's sha256")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="docker-archive file to write")
    parser.add_argument("--user", type=int, default=65532)
    parser.add_argument("--max-mb", type=int, default=100, help="refuse a larger image")
    parser.add_argument("program", nargs="+", help="FILE:/path/inside; the first one is the entry point")
    arguments = parser.parse_args()
    programs = []
    for word in arguments.program:
        source, _, destination = word.rpartition(":")
        if not source or not destination.startswith("/"):
            parser.error(f"'{word}' is not FILE:/path/inside")
        if not pathlib.Path(source).is_file():
            parser.error(f"there is no file {source}; build it first")
        programs.append((pathlib.Path(source), destination))

    data = layer(programs, arguments.user)
    digest = hashlib.sha256(data).hexdigest()
    if len(data) > arguments.max_mb * 1_000_000:
        raise SystemExit(f"pack: {arguments.name} is {len(data) / 1e6:.0f} MB, more than {arguments.max_mb} MB")
    config = json.dumps({
        "created": EPOCH, "architecture": "amd64", "os": "linux",
        "config": {"User": f"{arguments.user}:{arguments.user}", "Entrypoint": [programs[0][1]], "WorkingDir": "/",
                   "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": EPOCH, "created_by": "images/pack.py"}],
    }, sort_keys=True).encode()
    reference = f"{arguments.name}:{arguments.tag or digest[:12]}"
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = arguments.output.with_suffix(".new")
    with tarfile.open(unfinished, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("config.json", config), ("layer.tar", data), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    unfinished.replace(arguments.output)
    print(f"images: {reference}: {len(data) / 1e6:.1f} MB", file=sys.stderr)
    print(reference)


if __name__ == "__main__":
    main()
