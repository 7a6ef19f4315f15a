# SPDX-License-Identifier: Apache-2.0
"""The files that the cases run on: real ones, which dev/models/fetch fetches, and random ones of 1.04 billion weights, so large that no
cache hides the memory."""
import functools
import pathlib
import subprocess

from servers import CACHE, ROOT

# The RESULT line tells of the first.
REAL = {"smollm2-q4_1": "smollm2-135m-instruct-q4_1.gguf", "gemma3-q4_k_m": "gemma3-270m-q4_k_m.gguf"}
RANDOM = {"random-1b-q4_k": "q4_k", "random-1b-q8_0": "q8_0"}


def real(quick: bool) -> dict:
    return {name: CACHE / "models" / file for name, file in list(REAL.items())[:1 if quick else None]}


@functools.cache
def random(model: str) -> pathlib.Path:
    """Of RANDOM; written where it is not there yet, which takes a minute."""
    said = subprocess.run([ROOT / "benchmarks/cpu/random_model", RANDOM[model]], check=True, capture_output=True, text=True)
    return pathlib.Path(said.stdout.strip())
