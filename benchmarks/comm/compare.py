#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our collectives against Open MPI's over TCP: same sizes, same number of calls, each rank on a core of its own, interleaved. Ratios
are ours divided by theirs of the same round: below 1 we are faster. Prints RESULT and stores the whole in docs/benchmarks."""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile

SIZES = [1024, 4096, 16384, 65536, 262144, 1048576, 4194304]
NAMES = {1024: "1k", 4096: "4k", 16384: "16k", 65536: "64k", 262144: "256k", 1048576: "1m", 4194304: "4m"}
PORT = 7811
SPACES = ("rempart-bench-0", "rempart-bench-1")
# How mpirun starts its daemon in a network namespace: as a node of its own name.
AGENT = """#!/bin/sh
space=$1; shift
exec ip netns exec "$space" unshare --uts sh -c "hostname $space; $*"
"""


def priority() -> list[str]:
    """Real time, where we may: what else the machine does then disturbs neither side."""
    return ["chrt", "-f", "1"] if os.geteuid() == 0 else []


def cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def run_all(commands: list[list[str]]) -> dict:
    """Runs the ranks of one measurement; rank 0 prints."""
    others = [subprocess.Popen(each, stdout=subprocess.DEVNULL) for each in commands[1:]]
    try:
        done = subprocess.run(commands[0], stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    finally:
        for other in others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.wait(20)
            other.kill()
    return json.loads(done.stdout)


def ours(binary: str, ranks: int, protection: str, sizes: list[int], calls: int, spaces: bool) -> dict:
    addresses = ",".join(f"10.231.0.{i + 1}:{PORT + i}" if spaces else f"127.0.0.1:{PORT + i}" for i in range(ranks))
    cores = cpus()
    commands = []
    for rank in range(ranks):
        inside = ["ip", "netns", "exec", SPACES[rank]] if spaces else []
        commands.append([*inside, *priority(), "taskset", "-c", str(cores[rank % len(cores)]), binary, str(rank), addresses, protection,
                         ",".join(map(str, sizes)), str(calls)])
    return run_all(commands)


def mpi(binary: str, ranks: int, sizes: list[int], calls: int, agent: str | None) -> dict:
    command = ["mpirun", "-np", str(ranks), "--allow-run-as-root", "--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]
    if agent:
        command += ["--host", ",".join(SPACES), "--mca", "plm_rsh_agent", agent, "--mca", "btl_tcp_if_include", "10.231.0.0/24",
                    "--mca", "oob_tcp_if_include", "10.231.0.0/24", "--mca", "plm", "rsh", "--bind-to", "none"]
        # Both daemons see all cores; each rank is bound by hand, as ours are.
        cores = cpus()
        command += ["sh", "-c", f"exec taskset -c $(( OMPI_COMM_WORLD_RANK % {len(cores)} == 0 ? {cores[0]} : {cores[-1]} )) "
                    f"{binary} {','.join(map(str, sizes))} {calls}"]
        command = ["ip", "netns", "exec", SPACES[0], "unshare", "--uts", "sh", "-c",
                   f"hostname rempart-bench-launch; exec \"$@\"", "sh", *command]
    else:
        command += ["--bind-to", "core" if ranks <= len(cpus()) else "none", "--oversubscribe", binary,
                    ",".join(map(str, sizes)), str(calls)]
    return run_all([[*priority(), *command]])


@contextlib.contextmanager
def network_spaces():
    """Two namespaces with a veth pair between them."""
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)
    for space in SPACES:
        subprocess.run(["ip", "netns", "del", space], stderr=subprocess.DEVNULL)
    try:
        for i, space in enumerate(SPACES):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("link", "add", "rmpb0", "netns", SPACES[0], "type", "veth", "peer", "name", "rmpb1", "netns", SPACES[1])
        for i, space in enumerate(SPACES):
            ip("-n", space, "addr", "add", f"10.231.0.{i + 1}/24", "dev", f"rmpb{i}")
            ip("-n", space, "link", "set", f"rmpb{i}", "up")
        yield
    finally:
        for space in SPACES:
            subprocess.run(["ip", "netns", "del", space])


def summary(rounds: list[dict]) -> dict:
    """Per collective and size: the medians over all rounds, and of the ratios within each round."""
    out = {}
    for collective in ("all_reduce", "all_gather"):
        for size in rounds[0]["mpi"][collective]:
            of = {who: [each[who][collective][size] for each in rounds] for who in rounds[0]}
            row = {f"{who}_us": round(statistics.median(times), 2) for who, times in of.items()}
            for who in ("plain", "encrypted"):
                ratios = sorted(a / b for a, b in zip(of[who], of["mpi"]))
                row[f"{who}_ratio"] = round(statistics.median(ratios), 3)
                row[f"{who}_ratio_spread"] = [round(ratios[0], 3), round(ratios[-1], 3)]
            out[f"{collective}_{NAMES[int(size)]}"] = row
    return out


def measure(args, spaces: bool, agent: str | None) -> dict:
    sizes = [size for size in SIZES if size <= (65536 if args.quick else args.largest)]
    rounds = []
    for _ in range(3 if args.quick else args.rounds):
        rounds.append({
            "plain": ours(args.ours, 2, "plain", sizes, args.calls, spaces),
            "mpi": mpi(args.mpi, 2, sizes, args.calls, agent),
            "encrypted": ours(args.ours, 2, "encrypted", sizes, args.calls, spaces),
        })
    return summary(rounds)


def measure_abort(binary: str, rounds: int) -> dict:
    """Per kind of link and number of ranks: until the slowest rank in a barrier, and one in no call, knows of an abort."""
    out = {}
    for kind in ("memory", "plain", "encrypted"):
        for ranks in (3, 8):
            out[f"{kind}_{ranks}"] = run_all([[binary, kind, str(ranks), str(rounds)]])
    return out


def processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.machine())


def table(title: str, rows: dict) -> list[str]:
    lines = [f"### {title}", "", "| collective | Open MPI | plain | ratio | encrypted | ratio |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        low, high = row["plain_ratio_spread"]
        lines.append(f"| {name} | {row['mpi_us']} µs | {row['plain_us']} µs | **{row['plain_ratio']}** ({low} to {high}) | "
                     f"{row['encrypted_us']} µs | {row['encrypted_ratio']} |")
    return lines + [""]


def abort_table(abort: dict) -> list[str]:
    lines = ["## Until an abort has reached all", "",
             "One rank is aborted by another thread while the others wait in a barrier and one is in no call; all are threads of one process, at ordinary",
             "priority. Milliseconds until the slowest of those that wait has come back with the error, and until the idle one knows; the bound is 100.",
             f"{abort['rounds']} rounds each, {abort['date']}, commit {abort['commit']}, {abort['processor']}, {abort['cores']} cores, "
             f"load {abort['load']} beside the benchmark.", "",
             "| links | ranks | waiting: median | p99 | worst | idle: median | p99 | worst |", "|---|---|---|---|---|---|---|---|"]
    for name, row in abort["results"].items():
        kind, ranks = name.rsplit("_", 1)
        cells = [f"{row[of][what]:.2f}" for of in ("waiting_ms", "idle_ms") for what in ("median", "p99", "worst")]
        lines.append(f"| {kind} | {ranks} | " + " | ".join(cells) + " |")
    return lines + [""]


def store(changed: dict) -> None:
    path = "docs/benchmarks/comm.json"
    with open(path) as file:
        result = {**json.load(file), **changed}
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    lines = ["# Collectives between two ranks", "",
             "`benchmarks/comm/run` measures our communicator against Open MPI restricted to TCP: the median of many calls in each round, rounds",
             "interleaved, each rank on a core of its own at real-time priority. Ratios are ours divided by theirs in the same round; below 1 we are faster. In brackets",
             "the best and the worst round. Encrypted is what runs between pods; Open MPI does not encrypt.", "",
             f"{result['date']}, commit {result['commit']}, {result['processor']}, {result['cores']} cores, load {result['load']} beside the benchmark.", ""]
    for where, rows in result["results"].items():
        lines += table(where, rows)
    if "abort" in result:
        lines += abort_table(result["abort"])
    with open("docs/benchmarks/comm.md", "w") as file:
        file.write("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="bytes")
    parser.add_argument("--only", choices=["collectives", "abort"])
    parser.add_argument("--abort", default="build/release/bin/abort_bench")
    parser.add_argument("--ours", default="build/release/bin/comm_bench")
    parser.add_argument("--mpi", default=os.path.abspath("build/release/bin/mpi_bench"))
    args = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    results = {}
    if args.only != "abort":
        results["loopback"] = measure(args, False, None)
    if results and os.geteuid() == 0:
        with network_spaces(), tempfile.NamedTemporaryFile("w", suffix=".sh", delete=False) as agent:
            agent.write(AGENT)
            agent.close()
            os.chmod(agent.name, 0o755)
            results["two network namespaces"] = measure(args, True, agent.name)
            os.unlink(agent.name)
    rounds = 50 if args.quick else 500
    abort = measure_abort(args.abort, rounds) if args.only != "collectives" else {}
    if not args.quick:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        facts = {"date": datetime.date.today().isoformat(), "commit": commit, "processor": processor(), "cores": len(cpus()), "load": load}
        if results:
            store({**facts, "results": results})
        if abort:
            store({"abort": {**facts, "rounds": rounds, "results": abort}})
    for where, rows in results.items():
        for name, row in rows.items():
            print(f"{where}: {name}: {row}")
    for name, row in abort.items():
        print(f"abort: {name}: {row}")
    flat = {}
    if abort:
        flat["abort_worst_ms"] = round(max(row[of]["worst"] for row in abort.values() for of in ("waiting_ms", "idle_ms")), 2)
    for where, rows in results.items():
        prefix = "" if where == "loopback" else "netns_"
        for name, row in rows.items():
            flat[prefix + name] = row["plain_ratio"]
            flat[prefix + "encrypted_" + name] = row["encrypted_ratio"]
    print("RESULT " + json.dumps(flat))


if __name__ == "__main__":
    main()
