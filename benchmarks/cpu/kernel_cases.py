# SPDX-License-Identifier: Apache-2.0
"""The model alone, without a server: our model_bench against llama.cpp's llama-bench, in turn, on the same file and threads."""
import json
import os
import pathlib
import subprocess

import models as files
from report import Case
from servers import BINARIES, THREADS

OURS = BINARIES / "model_bench"
BANDWIDTH = BINARIES / "bandwidth_bench"
PREFILL = (128, 512, 4096)
DECODE, DEPTHS = 64, (128, 4096)
BATCHES = (4, 8, 16, 32)
TIMEOUT_SECONDS = 600


def output(*words) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS).stdout


def ours(path: pathlib.Path, threads: int, tier: str, prefill: int, decode: int, depth: int, batch: int = 1) -> float:
    said = json.loads(output(OURS, path, threads, tier, prefill, decode, depth, batch))
    return said["prefill" if prefill else "decode"]


def theirs(binary: str, path: pathlib.Path, threads: int, prefill: int, decode: int, depth: int) -> float:
    rows = json.loads(output(binary, "-m", path, "-t", threads, "-p", prefill, "-n", decode, "-d", depth, "-r", 1, "-o", "json"))
    return rows[0]["avg_ts"]


def tiers() -> list:
    pairs = [("best", os.environ["LLAMA_BENCH_BEST"])]
    if os.environ.get("LLAMA_BENCH_AVX2"):
        pairs.append(("avx2", os.environ["LLAMA_BENCH_AVX2"]))
    return pairs


def memory_share(model: str, path: pathlib.Path, rounds: int, wanted):
    """What decoding one sequence reads of the weights in a second, against what as many threads that do nothing else can read."""
    for tier, _ in tiers():
        case = Case(f"{model}/{tier}/{THREADS}t/decode_1_reads", "GB/s", "memory")
        if not wanted(case.name):
            continue
        for _ in range(rounds):
            said = json.loads(output(OURS, path, THREADS, tier, 0, DECODE, 128, 1))
            case.add(said["decode"] * said["decode_bytes"] / 1e9, json.loads(output(BANDWIDTH, THREADS))["gb_per_s"])
        yield case.say()


def scaling(model: str, path: pathlib.Path, rounds: int, wanted):
    """Sequences that decode together against one alone."""
    for batch in BATCHES:
        case = Case(f"{model}/best/{THREADS}t/decode_{batch}_at_128", "tokens/s", "rempart, 1 sequence")
        if not wanted(case.name):
            continue
        for _ in range(rounds):
            case.add(ours(path, THREADS, "best", 0, DECODE // 4, 128, batch), ours(path, THREADS, "best", 0, DECODE, 128))
        yield case.say()


def run(models: dict, rounds: int, quick: bool, wanted):
    """Cases in tokens/s; a ratio above 1 is in our favour. `wanted` says of a case's name whether it is to be run."""
    shapes = [(f"prefill_{count}", count, 0, 0) for count in PREFILL]
    shapes += [(f"decode_1_at_{depth}", 0, DECODE, depth) for depth in DEPTHS]
    if quick:
        shapes = [("prefill_512", 512, 0, 0), ("decode_1_at_128", 0, DECODE, 128)]
    random = {} if quick else {name: files.random(name) for name in files.RANDOM}
    for model, path in {**models, **random}.items():
        for tier, binary in tiers():
            for threads in (THREADS,) if quick else (1, THREADS):
                for shape, prefill, decode, depth in shapes:
                    if model in random and max(prefill, depth) > 512:
                        continue
                    case = Case(f"{model}/{tier}/{threads}t/{shape}", "tokens/s", "llama.cpp")
                    if not wanted(case.name):
                        continue
                    for _ in range(rounds if max(prefill, depth) < 4096 else min(rounds, 3)):
                        case.add(ours(path, threads, tier, prefill, decode, depth), theirs(binary, path, threads, prefill, decode, depth))
                    yield case.say()
    if not quick:
        for model, path in random.items():
            yield from memory_share(model, path, rounds, wanted)
        for model, path in models.items():
            yield from scaling(model, path, rounds, wanted)
