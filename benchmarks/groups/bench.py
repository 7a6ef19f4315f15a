#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One model by one process of two threads, by two ranks that share its layers, and by two stages of its layers: `rempart serve` each,
the same requests, in turn. Ratios are to the one process in the same round: above 1 the group is faster. The answers have to be equal."""
import argparse
import asyncio
import contextlib
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cpu"))
import load  # noqa: E402
import servers  # noqa: E402

MODELS = {"smollm2": "smollm2-135m-instruct-q4_1.gguf", "gemma3": "gemma3-270m-q4_k_m.gguf"}
# Per model: name of the shape, parallelism, threads of each process. SmolLM2's nine heads are not shared by two.
SHAPES = {"smollm2": {"one": ("", 2), "pipeline_2": ("pipeline: 2", 1)},
          "gemma3": {"one": ("", 2), "tensor_2": ("tensor: 2, ranksPerPod: 1", 1), "pipeline_2": ("pipeline: 2", 1)}}
MANIFEST = """apiVersion: serving.rempart.dev/v1alpha1
kind: Model
metadata: {{name: bench}}
spec:
  source: {{uri: "file://{path}"}}
  servedNames: [bench]
  parallelism: {{{parallelism}}}
  engine: {{contextLength: 1024, maxSequences: 8, threads: {threads}, prefixCache: false, maxStepMilliseconds: 0}}
"""
WORDS = "the quick brown fox jumps over a lazy dog while seven old ships sail slowly past green islands".split()
PROMPT_TOKENS = re.compile(rb'"prompt_tokens": ?(\d+)')
OUT = 64


class Shape(servers.Rempart):
    def __init__(self, model: str, parallelism: str, threads: int):
        super().__init__(servers.CACHE / "models" / MODELS[model], 8, 1024)
        self.parallelism, self.threads = parallelism, threads

    def command(self) -> list:
        manifest = pathlib.Path(self.folder.name) / "model.yaml"
        manifest.write_text(MANIFEST.format(path=self.model, parallelism=self.parallelism, threads=self.threads))
        return [servers.BINARIES / "rempart", "serve", "-f", manifest, "--dev", "--cache", "none", "--port", self.port]


def prompt(seed: int, words: int) -> str:
    return " ".join([f"Number {seed}."] + [WORDS[(seed * 7 + i * i) % len(WORDS)] for i in range(words)])


def text_of(answer) -> str:
    lines = bytes(answer.body).decode(errors="replace").splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(choice.get("text", "") for event in events for choice in event["choices"])


def decode(port: int, clients: int, seed: int) -> tuple:
    """Tokens per second over all clients, from the first token of the last to begin until the first to end: all are decoding."""
    bodies = [[load.completion("bench", prompt(seed * 100 + client, 16), OUT)] for client in range(clients)]
    answers, _ = asyncio.run(load.run_clients(port, bodies, 1))
    begin, end = max(a.tokens[0] for a in answers), min(a.tokens[-1] for a in answers)
    tokens = sum(1 for a in answers for at in a.tokens if begin < at <= end)
    return tokens / (end - begin), [text_of(a) for a in answers]


def prefill(port: int, seed: int) -> tuple:
    """Tokens of a long prompt per second until the first token."""
    answers, _ = asyncio.run(load.run_clients(port, [[load.completion("bench", prompt(seed, 420), 1)]], 1))
    counted = int(PROMPT_TOKENS.findall(answers[0].body)[-1])
    return counted / answers[0].ttft, [text_of(answers[0])]


CASES = {"decode_1": lambda port, seed: decode(port, 1, seed), "decode_8": lambda port, seed: decode(port, 8, seed),
         "prefill_1": prefill}


def measure(model: str, rounds: int) -> dict:
    figures = {case: {shape: [] for shape in SHAPES[model]} for case in CASES}
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(Shape(model, *shape)) for name, shape in SHAPES[model].items()}
        for round_number in range(-1, rounds):
            for case, ask in CASES.items():
                said = {}
                for name, server in running.items():
                    speed, said[name] = ask(server.port, 50 + round_number)
                    if round_number >= 0:
                        figures[case][name].append(speed)
                wrong = [name for name in said if said[name] != said["one"]]
                if wrong:
                    raise RuntimeError(f"{model}, {case}: {wrong} do not say what one rank says: {said}")
    return figures


# One-way delays in microseconds, and the groups over them: tensor, pipeline, micro-batches.
DELAYS = [0, 1000, 5000]
LINKED = {"tensor_2": (2, 1, "0"), "pipeline_2_whole": (1, 2, "0"), "pipeline_2": (1, 2, "auto")}
LINK_PROMPT = 512


def measure_links(rounds: int) -> dict:
    """Gemma 3 over links that hold every byte back: milliseconds of a decode step, and tokens of a prompt per second."""
    rows = {}
    for delay in DELAYS:
        runs = {name: [] for name in LINKED}
        for _ in range(rounds):
            for name, (tensor, stages, micro) in LINKED.items():
                done = subprocess.run([servers.BINARIES / "link_bench", servers.CACHE / "models" / MODELS["gemma3"], str(tensor), str(stages),
                                       str(delay), micro, str(LINK_PROMPT)], stdout=subprocess.PIPE, text=True, check=True, timeout=300)
                runs[name].append(json.loads(done.stdout))
        rows[str(delay)] = {name: {what: round(statistics.median(run[what] for run in of), 2) for what in of[0]} for name, of in runs.items()}
    return rows


def summary(figures: dict) -> dict:
    rows = {}
    for case, of in figures.items():
        for shape, speeds in of.items():
            ratios = sorted(a / b for a, b in zip(speeds, of["one"]))
            rows[f"{case}_{shape}"] = {"tokens_per_second": round(statistics.median(speeds), 1),
                                       "ratio": round(statistics.median(ratios), 3),
                                       "spread": [round(ratios[0], 3), round(ratios[-1], 3)]}
    return rows


def processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))


def store(result: dict) -> None:
    with open("docs/benchmarks/groups.json", "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    lines = ["# Two processes against one, on two cores", "",
             "`benchmarks/groups/run` measures `rempart serve` end to end: one process of two threads; two ranks of one thread each that share every layer",
             "(`tensor: 2`); two stages of layers, of one thread each (`pipeline: 2`). The groups' processes talk over TCP on loopback. Tokens per second,",
             "medians; ratios are to the one process in the same round, above 1 the group is faster, in brackets the worst and the best round. Every answer",
             "of a group was the same as that of one process, token for token. SmolLM2's 9 heads do not divide by two.", "",
             "`decode_1` and `decode_8`: 1 and 8 answers at once, while all are decoding. `prefill_1`: one long prompt, to its first token.", "",
             f"{result['date']}, commit {result['commit']}, {result['processor']}, {result['cores']} cores, {result['rounds']} rounds, "
             f"load {result['load']} beside the benchmark.", ""]
    for model, rows in result["results"].items():
        lines += [f"### {model}", "", "| case | one | " + " | ".join(f"{shape} | ratio" for shape in list(SHAPES[model])[1:]) + " |",
                  "|---|---|" + "---|---|" * (len(SHAPES[model]) - 1)]
        for case in CASES:
            cells = [f"{rows[f'{case}_one']['tokens_per_second']}"]
            for shape in list(SHAPES[model])[1:]:
                row = rows[f"{case}_{shape}"]
                cells += [f"{row['tokens_per_second']}", f"**{row['ratio']}** ({row['spread'][0]} to {row['spread'][1]})"]
            lines.append(f"| {case} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["### Slow links", "",
              f"Gemma 3, two ranks of one thread each, linked through proxies that hold every byte back. Decode: milliseconds of a step of one sequence.",
              f"Prompt: tokens per second of {LINK_PROMPT} tokens. \"Whole\" passes the stages in one piece, the last columns in micro-batches.", "",
              "| delay one way | tensor 2: decode | prompt | pipeline 2 whole: decode | prompt | pipeline 2: decode | prompt |", "|---|---|---|---|---|---|---|"]
    for delay, row in result["links"].items():
        cells = [f"{row[name]['decode_ms']} ms | {row[name]['prompt_tokens_per_second']}" for name in LINKED]
        lines.append(f"| {int(delay) / 1000:g} ms | " + " | ".join(cells) + " |")
    lines.append("")
    with open("docs/benchmarks/groups.md", "w") as file:
        file.write("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    load_before = round(os.getloadavg()[0], 1)
    rounds = 3 if args.quick else args.rounds
    results = {model: summary(measure(model, rounds)) for model in (["smollm2"] if args.quick else SHAPES)}
    links = {} if args.quick else measure_links(3)
    if not args.quick:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        store({"date": datetime.date.today().isoformat(), "commit": commit, "processor": processor(), "cores": os.cpu_count(),
               "rounds": rounds, "load": load_before, "results": results, "links": links})
    for model, rows in results.items():
        for name, row in rows.items():
            print(f"{model}: {name}: {row}")
    for delay, row in links.items():
        print(f"links of {delay} us: {row}")
    print("RESULT " + json.dumps({f"{model}_{name}": row["ratio"] for model, rows in results.items() for name, row in rows.items()
                                  if not name.endswith("_one")}))


if __name__ == "__main__":
    main()
