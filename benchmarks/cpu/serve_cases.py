# SPDX-License-Identifier: Apache-2.0
"""Whole servers under load: ours (router and worker, by `rempart serve`) and a peer in turn, a fresh start each, the same prompts."""
import asyncio
import contextlib
import pathlib
import random
import string
import subprocess
import sys

import load
import models as files
from report import Case, percentile
from servers import THREADS, LlamaCpp, LlamaCppWithoutAvx512, Rempart, Vllm, VllmWithoutAvx512

CLIENTS = (1, 4, 8, 16, 32)
RANDOM_CLIENTS = (1, 16)
SHAPES = {"128_128": (128, 128), "1024_64": (1024, 64)}
PREFIX_TOKENS, PREFIX_ASKS = 2000, 4
# Common words that are one token each with their space.
WORDS = ("time year people way day man thing woman life child world school state family student group country problem hand part place "
         "case week company system program question work government number night point home water room mother area money story fact "
         "month lot right study book eye job word business issue side kind head house service friend father power hour game line end "
         "member law car city community name president team minute idea body information back parent face others level office door "
         "health person art war history party result change morning reason research girl guy moment air teacher force education").split()


def prompt(seed: str, tokens: int) -> str:
    """Words without meaning, other ones for every seed, so that no server has seen the beginning before."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(tokens))


def letters(seed: str, tokens: int) -> str:
    """For the random models: they know no words, so that each letter is a token."""
    draw = random.Random(seed)
    return "".join(draw.choice(string.ascii_lowercase) for _ in range(tokens))


def bodies(label: str, clients: int, tokens: int, out: int, text=prompt) -> list:
    return [[load.completion("bench", text(f"{label}/{client}", tokens), out)] for client in range(clients)]


def burst(server, label: str, clients: int, tokens: int, out: int, text=prompt) -> dict:
    """Every client asks at once."""
    asyncio.run(load.run_clients(server.port, bodies(label + "/warm-up", 1, tokens, 4, text), 1))
    answers, seconds = asyncio.run(load.run_clients(server.port, bodies(label, clients, tokens, out, text), 1))
    gaps = [gap for answer in answers for gap in answer.gaps]
    ttfts = [answer.ttft for answer in answers]
    return {"tokens_per_s": clients * out / seconds, "ttft_p50": percentile(ttfts, 50), "ttft_p99": percentile(ttfts, 99),
            "itl_p50": percentile(gaps, 50), "itl_p99": percentile(gaps, 99), **server.memory()}


UNITS = {"tokens_per_s": "tokens/s", "ttft_p50": "s", "ttft_p99": "s", "itl_p50": "s", "itl_p99": "s", "rss_mib": "MiB",
         "anonymous_mib": "MiB"}


def under_load(model: str, mine, peer, clients: int, shape: str, rounds: int, text=prompt) -> list:
    """`mine` and `peer` make a server for a number of sequences and a context."""
    tokens, out = SHAPES[shape]
    # The words make a few tokens more than their number in some vocabularies.
    context = (tokens + out) * 5 // 4 + 64
    made = [make(clients, context) for make in (mine, peer)]
    names = {key: Case(f"{model}/serve_{clients}/{shape}/{key}", unit, made[1].name) for key, unit in UNITS.items()}
    names["exec_to_first_token"] = Case(f"{model}/serve_{clients}/{shape}/exec_to_first_token", "s", made[1].name)
    for number in range(rounds):
        seen = []
        for make in (mine, peer):
            with make(clients, context) as server:
                seen.append({**burst(server, f"{shape}/{clients}/{number}", clients, tokens, out, text),
                             "exec_to_first_token": server.exec_to_first_token})
        for key, case in names.items():
            case.add(seen[0][key], max(seen[1][key], 1e-6))
    return [case.say() for case in names.values()]


def shared_prefix(model: str, mine, peer, rounds: int) -> list:
    """One system prompt for several questions, one after the other: time to the first token of the first and of the others."""
    context = PREFIX_TOKENS * 5 // 4 + 128
    first = Case(f"{model}/prefix_2000/first_ttft", "s", "llama.cpp")
    later = Case(f"{model}/prefix_2000/later_ttft", "s", "llama.cpp")
    share = Case(f"{model}/prefix_2000/later_over_first", "", "llama.cpp")
    for number in range(rounds):
        seen = []
        for make in (mine, peer):
            with make(1, context) as server:
                system = prompt(f"prefix/{number}", PREFIX_TOKENS)
                asks = [load.completion("bench", f"{system} {prompt(f'ask/{number}/{i}', 16)}", 4) for i in range(PREFIX_ASKS)]
                answers, _ = asyncio.run(load.run_clients(server.port, [asks], PREFIX_ASKS))
                seen.append((answers[0].ttft, percentile([answer.ttft for answer in answers[1:]], 50)))
        first.add(seen[0][0], seen[1][0])
        later.add(seen[0][1], seen[1][1])
        share.add(seen[0][1] / seen[0][0], seen[1][1] / seen[1][0])
    return [first.say(), later.say(), share.say()]


@contextlib.contextmanager
def busy_cores():
    """One process per core that never rests."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(THREADS)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def beside_others(model: str, mine, peer, rounds: int) -> list:
    """One client while every core is busy with something else."""
    case = Case(f"{model}/busy_cores/decode_1", "tokens/s", "llama.cpp")
    for number in range(rounds):
        rates = []
        for make in (mine, peer):
            with make(1, 512) as server, busy_cores():
                answers, _ = asyncio.run(load.run_clients(server.port, bodies(f"busy/{number}", 1, 16, 64), 1))
                rates.append(1 / (sum(answers[0].gaps) / len(answers[0].gaps)))
        case.add(*rates)
    return [case.say()]


def makers(path: pathlib.Path, without_avx512: bool) -> tuple:
    """Of ours and of llama.cpp's server, from a number of sequences and a context."""
    tier, peer = ("avx2", LlamaCppWithoutAvx512) if without_avx512 else ("", LlamaCpp)
    return (lambda sequences, context: Rempart(path, sequences, context, tier=tier), lambda sequences, context: peer(path, sequences, context))


def run_real(models: dict, rounds: int, quick: bool, wanted, without_avx512: bool):
    for index, (name, path) in enumerate(models.items()):
        model = f"{name}/serve_avx2" if without_avx512 else name
        mine, peer = makers(path, without_avx512)
        # The second model shows that the first is no exception.
        clients = (1, 16) if quick or index > 0 else CLIENTS
        for shape in list(SHAPES)[:1] if quick or index > 0 else SHAPES:
            for count in clients:
                if wanted(f"{model}/serve_{count}/{shape}"):
                    yield from under_load(model, mine, peer, count, shape, rounds)
        if wanted(f"{model}/prefix_2000"):
            yield from shared_prefix(model, mine, peer, rounds)
        if wanted(f"{model}/busy_cores"):
            yield from beside_others(model, mine, peer, rounds)


def run_random(rounds: int, wanted, without_avx512: bool):
    """The models that no cache holds, alone and together."""
    for name in files.RANDOM:
        model = f"{name}/serve_avx2" if without_avx512 else name
        for count in RANDOM_CLIENTS:
            if wanted(f"{model}/serve_{count}/128_128"):
                yield from under_load(model, *makers(files.random(name), without_avx512), count, "128_128", rounds, letters)


def run(models: dict, rounds: int, quick: bool, wanted, tiers=(False,)):
    """`wanted` says of a case's name whether it is to be run; `tiers`, for each pass, whether both sides do without AVX-512."""
    for without_avx512 in tiers:
        yield from run_real(models, rounds, quick, wanted, without_avx512)
        if not quick:
            yield from run_random(rounds, wanted, without_avx512)


def run_vllm(model: str, ours: pathlib.Path, bf16: pathlib.Path, rounds: int, wanted, clients=(1, 4, 16), without_avx512=False):
    """vLLM starts once, for minutes, and stands still while ours runs. Ours computes on the same BF16 weights, and on the file that they
    were made from, which is what one would serve. without_avx512: both as on a processor that has AVX2 alone."""
    tokens, out = SHAPES["128_128"]
    suffix, tier, kind = ("_avx2", "avx2", VllmWithoutAvx512) if without_avx512 else ("", "", Vllm)
    context, began = 512, Case(f"{model}/vllm{suffix}/exec_to_first_token", "s", "vllm")
    cases = {}
    if not any(wanted(f"{model}/vllm{suffix}/serve_{count}") for count in clients):
        return
    with kind(bf16, 16, context) as peer:
        for number in range(rounds):
            seen = {count: burst(peer, f"vllm/{number}/{count}", count, tokens, out) for count in clients
                    if wanted(f"{model}/vllm{suffix}/serve_{count}")}
            with peer.standing_still():
                for name, weights in ((f"vllm{suffix}", bf16), (f"vllm{suffix}_from_file", ours)):
                    with Rempart(weights, 16, context, tier=tier) as server:
                        if weights == bf16:
                            began.add(server.exec_to_first_token, peer.exec_to_first_token)
                        for count, theirs in seen.items():
                            mine = burst(server, f"vllm/{number}/{count}", count, tokens, out)
                            for key, unit in UNITS.items():
                                path = f"{model}/{name}/serve_{count}/{key}"
                                cases.setdefault(path, Case(path, unit, "vllm")).add(mine[key], max(theirs[key], 1e-6))
    yield began.say()
    for case in cases.values():
        yield case.say()
