# SPDX-License-Identifier: Apache-2.0
"""Starts: from exec until a worker alone is ready, against what is asked of it, and until `rempart serve` answers with its first token,
against llama-server. warm: all files lie in the page cache. cold: nothing of the programs, the model and the repacked weights does.
cold_no_cache: nor are there repacked weights. What the system's own libraries take stays warm."""
import ctypes
import json
import mmap
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import time

from report import Case
from servers import BINARIES, THREADS, LlamaCpp, Rempart

TARGET_SECONDS = {"warm": 0.5, "cold": 1.5, "cold_no_cache": 1.5}
CONTEXT = 512
# For a start to be over, for repacked weights to be written after it, for pages to leave.
START_SECONDS, REPACK_SECONDS, EVICT_SECONDS = 60, 120, 10
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def resident_pages(file) -> int:
    size = os.fstat(file.fileno()).st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        failed = LIBC.mincore(ctypes.addressof(first), size, pages)
        del first
    if failed:
        raise RuntimeError(f"mincore: {os.strerror(ctypes.get_errno())}")
    return sum(page & 1 for page in pages)


def evict(path: pathlib.Path) -> None:
    deadline = time.monotonic() + EVICT_SECONDS
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a page that is not written yet stays
        while True:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            left = resident_pages(file)
            if left == 0:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path}: {left} pages stay in the page cache; end the processes that have the file mapped")
            time.sleep(0.05)


def read_through(path: pathlib.Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def start_worker(model: pathlib.Path, cache: pathlib.Path, wants_repacked: bool = False) -> tuple:
    """Seconds until the worker says that it is ready, and its own account of them. wants_repacked: it ends once its repacked weights lie in
    `cache`."""
    with tempfile.TemporaryDirectory(prefix="rempart-bench-") as folder:
        config = pathlib.Path(folder) / "worker.json"
        config.write_text(json.dumps({
            "modelName": "bench", "groupName": "bench-0", "servedNames": ["bench"], "modelPath": str(model), "device": "cpu",
            "listenAddress": f"unix:{folder}/worker.sock", "repackCacheFolder": str(cache),
            "engine": {"threads": THREADS, "contextLength": CONTEXT, "maxSequences": 1}}))
        begin = time.perf_counter()
        worker = subprocess.Popen([BINARIES / "rempart-worker", "--config", config], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, text=True)
        overdue = threading.Timer(START_SECONDS, worker.kill)
        overdue.start()
        try:
            said = []
            for line in worker.stderr:
                said.append(line)
                if " worker: ready " in line:
                    seconds = time.perf_counter() - begin
                    overdue.cancel()
                    break
            else:
                raise RuntimeError(f"the worker was not ready within {START_SECONDS} s:\n{''.join(said)}")
            deadline = time.monotonic() + REPACK_SECONDS
            while wants_repacked and not list(cache.glob("*.repacked")):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the worker wrote no repacked weights into {cache} in {REPACK_SECONDS} s")
                time.sleep(0.1)
            return seconds, re.search(r'start="([^"]*)"', said[-1])[1]
        finally:
            overdue.cancel()
            worker.kill()
            worker.wait()
            worker.stderr.close()


def prepare(state: str, model: pathlib.Path, cache: pathlib.Path, files: list) -> None:
    """Brings `files` and the repacked weights into the state that a start is measured in."""
    if state == "cold_no_cache":
        for path in cache.iterdir():
            path.unlink()
    elif not list(cache.glob("*.repacked")):
        start_worker(model, cache, wants_repacked=True)
    for path in [*files, *cache.iterdir()]:
        (read_through if state == "warm" else evict)(path)


def run(models: dict, rounds: int, wanted, notes: dict):
    """Of the first model, which is the one that targets name. `notes` gets the workers' own accounts of their starts."""
    model, path = next(iter(models.items()))
    programs = [BINARIES / name for name in ("rempart", "rempart-worker", "rempart-router")]
    llama_server = pathlib.Path(os.environ["LLAMA_SERVER"])
    accounts = notes.setdefault("start_accounts", {})
    with tempfile.TemporaryDirectory(prefix="rempart-bench-cache-") as folder:
        cache = pathlib.Path(folder)
        cases = {}
        for state, target in TARGET_SECONDS.items():
            if wanted(f"{model}/start/{state}/"):
                cases[state] = (Case(f"{model}/start/{state}/worker_ready", "s", "target"),
                                Case(f"{model}/start/{state}/first_token", "s", "llama.cpp"))
        for _ in range(rounds):
            for state, (ready, answered) in cases.items():
                prepare(state, path, cache, [path, *programs])
                seconds, account = start_worker(path, cache)
                ready.add(seconds, TARGET_SECONDS[state])
                accounts.setdefault(ready.name, []).append(account)
                prepare(state, path, cache, [path, *programs])
                with Rempart(path, 1, CONTEXT, cache=cache) as mine:
                    pass
                prepare(state, path, cache, [path, llama_server])
                with LlamaCpp(path, 1, CONTEXT) as peer:
                    answered.add(mine.exec_to_first_token, peer.exec_to_first_token)
        for pair in cases.values():
            for case in pair:
                yield case.say()
                for account in accounts.get(case.name, []):
                    print(f"  {account}")
