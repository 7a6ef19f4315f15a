# SPDX-License-Identifier: Apache-2.0
"""Medians, spread and ratios of what was measured in turn, and what is kept of them.
report.py RESULT.json... prints results as the tables of docs/benchmarks/cpu.md."""
import dataclasses
import datetime
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time

FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_int8", "amx_bf16")


def percentile(values: list, percent: float) -> float:
    """Of the nearest rank: a value that was seen."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclasses.dataclass
class Case:
    """Rounds of one case: ours and the peer's figure of each, measured one after the other."""
    name: str
    unit: str
    peer: str
    mine: list = dataclasses.field(default_factory=list)
    theirs: list = dataclasses.field(default_factory=list)

    def add(self, mine: float, theirs: float) -> None:
        self.mine.append(mine)
        self.theirs.append(theirs)

    @property
    def ratios(self) -> list:
        return sorted(m / t for m, t in zip(self.mine, self.theirs))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def say(self) -> "Case":
        row = self.row()
        print(f"{self.name:44} {row['rempart']:>10} {row['peer_value']:>10} {self.unit:9} ratio {row['ratio']:.2f} "
              f"({row['spread'][0]:.2f} to {row['spread'][1]:.2f}, {len(self.mine)} rounds, {self.peer})", flush=True)
        return self

    def row(self) -> dict:
        return {"case": self.name, "unit": self.unit, "peer": self.peer, "rempart": short(statistics.median(self.mine)),
                "peer_value": short(statistics.median(self.theirs)), "ratio": short(self.ratio),
                "spread": [short(self.ratios[0]), short(self.ratios[-1])],
                "rempart_all": [short(value) for value in self.mine], "peer_all": [short(value) for value in self.theirs]}


def short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def processor() -> dict:
    fields = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    has = fields.get("flags", "").split()
    return {"model": fields.get("model name", "unknown"), "family": fields.get("cpu family"), "number": fields.get("model"),
            "cores": len([line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")]),
            "flags": [flag for flag in FLAGS if flag in has]}


def busy_elsewhere() -> float:
    """Share of the machine's CPU time that was in use over a second in which the benchmark did nothing."""

    def ticks():
        numbers = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return sum(numbers), numbers[3] + numbers[4]

    total, idle = ticks()
    time.sleep(1)
    later_total, later_idle = ticks()
    return round(1 - (later_idle - idle) / max(1, later_total - total), 2)


def store(root: pathlib.Path, command: str, busy: list, cases: list, notes: dict) -> pathlib.Path:
    """docs/benchmarks/cpu-DATE-COMMIT.json, or the first of cpu-DATE-COMMIT-2.json and so on that is free."""
    commit = subprocess.run(["git", "-C", root, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    date = datetime.date.today().isoformat()
    result = {"date": date, "commit": commit, "processor": processor(), "command": command, "busy_elsewhere": busy, **notes,
              "cases": [case.row() for case in cases]}
    folder, name = root / "docs/benchmarks", f"cpu-{date}-{commit}"
    path, number = folder / f"{name}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def table(result: dict) -> str:
    """Markdown: what was measured, then one line per case."""
    lines = [f"`{result['command']}`, {result['date']}, commit {result['commit']}; {result['processor']['cores']} cores of "
             f"{result['processor']['model']} (family {result['processor']['family']}, model {result['processor']['number']}: "
             f"{' '.join(result['processor']['flags'])}); other work kept the CPUs {max(result['busy_elsewhere']):.0%} busy.", "",
             "| case | unit | Rempart | peer | ratio | spread | rounds |", "|---|---|---|---|---|---|---|"]
    for case in result["cases"]:
        lines.append(f"| {case['case']} | {case['unit']} | {case['rempart']:g} | {case['peer_value']:g} ({case['peer']}) | {case['ratio']:g} | "
                     f"{case['spread'][0]:g} to {case['spread'][1]:g} | {len(case['rempart_all'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(table(json.loads(pathlib.Path(name).read_text())), end="\n\n")
