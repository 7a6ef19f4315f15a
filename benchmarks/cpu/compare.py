# SPDX-License-Identifier: Apache-2.0
"""Runs model_bench and llama-bench in turn and prints the ratios of their medians (called by ./run)."""
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ROOT / "build/release/bin/model_bench"
MODELS = pathlib.Path(os.environ.get("REMPART_CACHE", pathlib.Path.home() / ".cache/rempart")) / "models"
FILES = {"smollm2-q4_1": "smollm2-135m-instruct-q4_1.gguf", "gemma3-q4_k_m": "gemma3-270m-q4_k_m.gguf"}
PREFILL, DECODE = 512, 128


def output(*words) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, timeout=600).stdout


def ours(path: pathlib.Path, threads: int, tier: str) -> dict:
    return json.loads(output(OURS, path, threads, tier, PREFILL, DECODE))


def theirs(binary: str, path: pathlib.Path, threads: int) -> dict:
    rows = json.loads(output(binary, "-m", path, "-t", threads, "-p", PREFILL, "-n", DECODE, "-r", 1, "-o", "json"))
    rates = {("prefill" if row["n_prompt"] else "decode"): row["avg_ts"] for row in rows}
    return {**rates, "build": rows[0].get("build_number", "")}


def processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def cases(arguments: list[str]):
    quick = "--quick" in arguments
    models = list(FILES)[:1] if quick else list(FILES)
    tiers = [("best", os.environ["LLAMA_BENCH_BEST"])]
    if os.environ.get("LLAMA_BENCH_AVX2"):
        tiers.append(("avx2", os.environ["LLAMA_BENCH_AVX2"]))
    for model in models:
        for tier, binary in tiers:
            for threads in (1, 2):
                yield model, tier, binary, threads


def main() -> None:
    arguments = sys.argv[1:]
    if set(arguments) - {"--quick", "--avx2"}:
        sys.exit("benchmarks/cpu/run: the flags are --quick and --avx2")
    rounds = 2 if "--quick" in arguments else 5
    ratios, details = {}, []
    for model, tier, binary, threads in cases(arguments):
        path = MODELS / FILES[model]
        mine, peer = [], []
        for _ in range(rounds):
            mine.append(ours(path, threads, tier))
            peer.append(theirs(binary, path, threads))
        for phase in ("prefill", "decode"):
            pairs = sorted(m[phase] / p[phase] for m, p in zip(mine, peer))
            name = f"{model}/{tier}/{threads}t/{phase}"
            ratios[name] = round(statistics.median(pairs), 3)
            row = {"case": name, "kernels": mine[0]["tier"], "ratio": ratios[name],
                   "spread": [round(pairs[0], 3), round(pairs[-1], 3)],
                   "rempart_tokens_per_s": round(statistics.median(m[phase] for m in mine), 1),
                   "llama_cpp_tokens_per_s": round(statistics.median(p[phase] for p in peer), 1)}
            details.append(row)
            print(f"{name:40} {row['rempart_tokens_per_s']:>9} {row['llama_cpp_tokens_per_s']:>9} tokens/s   "
                  f"ratio {row['ratio']:.2f} ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})", flush=True)
    if "--quick" not in arguments:
        commit = output("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
        result = {"date": datetime.date.today().isoformat(), "commit": commit, "processor": processor(),
                  "peer": "llama.cpp of llama-cpp-python 0.3.36", "prefill": PREFILL, "decode": DECODE,
                  "rounds": rounds, "cases": details}
        (ROOT / "docs/benchmarks/cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print("RESULT " + json.dumps(ratios))


main()
