#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The operator with many Models: how long an edit takes, what it costs, what it does when nothing changes, how it comes back."""
import argparse
import contextlib
import datetime
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import figures
import kube
import report
import workload
from control_plane import KUBE_BIN, ControlPlane, Process, free_ports, say

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPERATOR = pathlib.Path(os.environ.get("REMPART_BIN", ROOT / "build/release/bin")) / "rempart-operator"
SEED = 4
TICKS = os.sysconf("SC_CLK_TCK")
LOAD_LIMIT_S, EDIT_LIMIT_S = 3600, 900


class Operator:
    """The process under test, with the rights that the chart gives it."""

    def __init__(self, plane: ControlPlane, kubeconfig: str):
        self.plane, self.kubeconfig = plane, kubeconfig
        self.health = free_ports(1)[0]
        self.process = None

    def start(self) -> None:
        socket = self.plane.folder / "operator.sock"
        socket.unlink(missing_ok=True)
        self.process = Process("rempart-operator", [
            OPERATOR, "--namespace=rempart", f"--identity=bench-{time.monotonic_ns()}", f"--listen=unix:{socket}",
            f"--health-address=127.0.0.1:{self.health}", "--worker-image=rempart.dev/worker:bench", "--allow-node-paths=true",
            f"--kubeconfig={self.kubeconfig}"], self.plane.folder)

    def ask(self, path: str) -> str | None:
        """None: it does not answer yet, or not with 200."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}{path}", timeout=10) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, OSError):
            return None

    def metrics(self) -> dict:
        text = self.ask("/metrics")
        return {name.removeprefix("rempart_operator_"): value for name, value in figures.parse_metrics(text or "").items()}

    def cpu_seconds(self) -> float:
        return figures.cpu_ticks(pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()) / TICKS

    def memory(self) -> dict:
        return figures.memory_mib(pathlib.Path(f"/proc/{self.process.pid}/status").read_text())


class Window:
    """What the operator does between here and `end`. `fresh`: it has just been started, and has done nothing before."""

    def __init__(self, operator: Operator, fresh: bool = False):
        self.operator, self.begin = operator, time.monotonic()
        self.cpu = 0.0 if fresh else operator.cpu_seconds()
        self.metrics = {} if fresh else operator.metrics()
        self.offset = operator.plane.audit_log.stat().st_size
        self.of_others = self.others_seconds(self.cpu)

    def others_seconds(self, operator_cpu: float) -> float:
        """What the machine has worked for none of this benchmark's processes."""
        own = [os.getpid(), *(process.pid for process in self.operator.plane.processes)]
        ticks = sum(figures.cpu_ticks(pathlib.Path(f"/proc/{pid}/stat").read_text()) for pid in own)
        return (figures.busy_ticks(pathlib.Path("/proc/stat").read_text()) - ticks) / TICKS - operator_cpu

    def calls(self) -> dict:
        with self.operator.plane.audit_log.open("rb") as log:
            log.seek(self.offset)
            return figures.count_calls(log.read().decode())

    def end(self) -> dict:
        total = self.operator.cpu_seconds()
        seconds, cpu, others = time.monotonic() - self.begin, total - self.cpu, self.others_seconds(total) - self.of_others
        after, calls = self.operator.metrics(), self.calls()
        reconciles = after["reconciles_total"] - self.metrics.get("reconciles_total", 0)
        own = {name: after[f"api_{name}_total"] - self.metrics.get(f"api_{name}_total", 0) for name in ("calls", "writes")}
        # One renewal of the lease is one read and one write.
        leases = after["lease_writes_total"] - self.metrics.get("lease_writes_total", 0)
        return {"seconds": round(seconds, 2), "others_cores": round(max(others, 0) / seconds, 2),
                "cpu_seconds": round(cpu, 2), "cpu_percent": round(100 * cpu / seconds, 2),
                "reconciles": int(reconciles), "calls": sum(calls.values()), "writes": figures.writes_of(calls),
                "calls_per_reconcile": round(sum(calls.values()) / max(reconciles, 1), 2), "calls_of": calls,
                "own_metric": {"calls": int(own["calls"]), "writes": int(own["writes"]), "lease_writes": int(leases)},
                "memory": self.operator.memory()}


class Bench:
    def __init__(self, args, folder: pathlib.Path):
        self.args, self.random = args, random.Random(SEED)
        self.plane = ControlPlane(folder)
        self.client = self.operator = self.seen = self.editor = None

    def wait(self, seconds: float, what: str, condition, progress=None) -> None:
        deadline = time.monotonic() + seconds
        told = time.monotonic()
        while not condition():
            self.plane.check()
            self.operator.process.check()
            self.seen.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what}: not within {seconds} s" + (f" ({progress()})" if progress else ""))
            if progress and time.monotonic() - told > 15:
                told = time.monotonic()
                say(f"  {what}: {progress()}")
            time.sleep(0.05)

    def kubectl(self, *words: str, text: str = "") -> None:
        """Again until it succeeds, for two minutes; what it said last is part of the error."""
        admin = self.plane.kubeconfig("admin", self.plane.tokens["admin"])
        said = ""

        def succeeds() -> bool:
            nonlocal said
            done = subprocess.run([KUBE_BIN / "kubectl", f"--kubeconfig={admin}", "--namespace=rempart", *words], input=text,
                                  capture_output=True, text=True)
            said = done.stderr
            return done.returncode == 0
        try:
            self.plane.wait_until(120, f"kubectl {' '.join(words)}", succeeds)
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {said}") from error

    def prepare(self) -> None:
        """Schemas and rights as the chart has them; what was installed on no cluster, kwok plays."""
        say("starting etcd, the API server, controllers, the scheduler and kwok")
        self.plane.start()
        self.client = kube.Kube(self.plane.port, str(self.plane.authority()), self.plane.tokens["admin"])
        workload.create_namespaces(self.client, self.args.models)
        workload.create_nodes(self.client, self.args.models)
        rights = subprocess.run([KUBE_BIN / "helm", "template", "rempart", ROOT / "charts/rempart", "--namespace=rempart",
                                 "--show-only=templates/rbac.yaml"], check=True, capture_output=True, text=True).stdout
        self.kubectl("apply", "--server-side", "-f", "-", text=rights)
        self.kubectl("apply", "--server-side", "-f", str(ROOT / "charts/rempart/crds"))
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/models.serving.rempart.dev")
        token = self.client.send("POST", "/api/v1/namespaces/rempart/serviceaccounts/rempart-operator/token",
                                 {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}})
        self.operator = Operator(self.plane, self.plane.kubeconfig("operator", token["status"]["token"]))
        self.seen = workload.Seen(self.client)
        self.editor = workload.Editor(self.client, self.seen, time.monotonic)

    def wait_whole(self, what: str) -> None:
        self.wait(LOAD_LIMIT_S, what, lambda: self.seen.whole_count() == self.args.models,
                  lambda: f"{self.seen.whole_count()} of {self.args.models} Models are Ready")

    def settle(self) -> None:
        """Until the operator has written nothing for ten seconds."""
        state = {"writes": -1, "since": 0.0, "window": Window(self.operator)}

        def is_quiet() -> bool:
            time.sleep(1)
            writes = figures.writes_of(state["window"].calls())
            if writes != state["writes"]:
                state.update(writes=writes, since=time.monotonic())
            return time.monotonic() - state["since"] > 10
        self.wait(LOAD_LIMIT_S, "the operator writes nothing", is_quiet, lambda: f"{state['writes']} writes")

    def load(self) -> dict:
        say(f"creating {self.args.models} Models of {workload.PODS_PER_MODEL} pods on {workload.node_count(self.args.models)} nodes")
        self.operator.start()
        self.wait(60, "the operator", lambda: self.operator.ask("/readyz") is not None)
        window = Window(self.operator)
        workload.create_models(self.client, self.args.models)
        created = time.monotonic() - window.begin
        self.wait_whole("Models Ready")
        return {"created_seconds": round(created, 1), **window.end()}

    def idle(self) -> dict:
        self.settle()
        say(f"looking on for {self.args.idle} s while nothing changes")
        window = Window(self.operator)
        deadline = time.monotonic() + self.args.idle
        self.wait(self.args.idle + 60, "idle", lambda: time.monotonic() >= deadline)
        result = window.end()
        return {**result, "writes_per_minute": round(60 * result["writes"] / result["seconds"], 2)}

    def finish_edits(self, keys: list) -> dict:
        for what in ("applied", "told", "rolled"):
            self.wait(EDIT_LIMIT_S, f"edits {what}", lambda what=what: self.seen.not_yet(keys, what) == 0,
                      lambda what=what: f"{self.seen.not_yet(keys, what)} left")
        return {what: figures.spread([getattr(self.seen.edits[key], what) for key in keys]) for what in ("applied", "told", "rolled")}

    def choose(self, count: int) -> list:
        return [workload.key_of(index) for index in self.random.sample(range(self.args.models), count)]

    def edit_spaced(self) -> dict:
        say(f"editing {self.args.edits} Models, one about every {self.args.gap} s")
        keys = self.choose(self.args.edits)
        window = Window(self.operator)
        for key in keys:
            self.editor.edit(key)
            time.sleep(min(self.random.expovariate(1 / self.args.gap), 5 * self.args.gap))
        times = self.finish_edits(keys)
        self.wait_whole("Models Ready")
        return {**times, **window.end()}

    def edit_at_once(self) -> dict:
        say(f"editing {self.args.burst} Models at once")
        keys = self.choose(self.args.burst)
        window = Window(self.operator)
        for key in keys:
            self.editor.edit(key)
        sent = time.monotonic() - window.begin
        times = self.finish_edits(keys)
        self.wait_whole("Models Ready")
        return {"sent_seconds": round(sent, 2), **times, **window.end()}

    def restart(self) -> dict:
        """In good order, with nothing to do: how long until every Model has been looked at, and whether anything is written."""
        say("stopping and starting the operator")
        self.operator.process.stop()
        window = Window(self.operator, fresh=True)
        self.operator.start()
        self.wait(120, "first lists", lambda: self.operator.ask("/readyz") is not None)
        synced = time.monotonic() - window.begin

        def is_through() -> bool:
            now = self.operator.metrics()
            return now.get("reconciles_total", 0) >= self.args.models and now["queued"] == 0
        self.wait(300, "every Model looked at", is_through)
        through = time.monotonic() - window.begin
        self.settle()
        return {"lists_seconds": round(synced, 2), "converged_seconds": round(through, 2), **window.end()}

    def restart_killed(self) -> dict:
        """kill -9, edits while nobody looks, then a new process, which has to wait for the old one's lease."""
        say("killing the operator, editing, and starting it again")
        self.operator.process.stop(signal.SIGKILL)
        keys = self.choose(min(20, self.args.models))
        for key in keys:
            self.editor.edit(key)
        window = Window(self.operator, fresh=True)
        self.operator.start()
        self.wait(EDIT_LIMIT_S, "edits applied", lambda: self.seen.not_yet(keys, "applied") == 0)
        last = max(edit.sent + edit.applied for edit in (self.seen.edits[key] for key in keys))
        self.finish_edits(keys)
        self.wait_whole("Models Ready")
        return {"edits": len(keys), "applied_seconds": round(last - window.begin, 2), **window.end()}

    def run(self) -> dict:
        self.prepare()
        results = {"load": self.load()}
        results["idle"] = self.idle()
        results["edits"] = self.edit_spaced()
        results["burst"] = self.edit_at_once()
        self.settle()
        results["restart"] = self.restart()
        results["restart_killed"] = self.restart_killed()
        return results


def processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))


def summary(results: dict) -> dict:
    edits, idle = results["edits"], results["idle"]
    return {"applied_p50_ms": edits["applied"]["p50_ms"], "applied_p99_ms": edits["applied"]["p99_ms"],
            "burst_p99_ms": results["burst"]["applied"]["p99_ms"], "calls_per_reconcile": edits["calls_per_reconcile"],
            "peak_mib": max(part["memory"]["peak_mib"] for part in results.values()), "idle_mib": idle["memory"]["rss_mib"],
            "idle_cpu_percent": idle["cpu_percent"], "idle_writes_per_minute": idle["writes_per_minute"],
            "restart_seconds": results["restart"]["converged_seconds"], "restart_writes": results["restart"]["writes"]}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundred Models; nothing is stored")
    parser.add_argument("--models", type=int)
    parser.add_argument("--edits", type=int, help="of different Models, one after the other")
    parser.add_argument("--gap", type=float, default=1.0, help="mean seconds between two of them")
    parser.add_argument("--idle", type=int, help="seconds; everything is told again to the reconciler about every 15 minutes")
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs")
    args = parser.parse_args()
    args.models = args.models or (100 if args.quick else 1000)
    args.edits = min(args.edits or (60 if args.quick else 300), args.models)
    args.burst = max(args.models // 10, 1)
    args.idle = args.idle or (60 if args.quick else 900)
    return args


def measure(args) -> dict:
    """In a folder that goes away, with processes that do."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="rempart-operator-bench-"))
    with contextlib.ExitStack() as stack:
        if args.keep:
            say(f"logs: {folder}")
        else:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        bench = Bench(args, folder)
        stack.callback(bench.plane.stop)
        stack.callback(lambda: bench.operator and bench.operator.process and bench.operator.process.stop(seconds=5))
        return bench.run()


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    load_before = round(os.getloadavg()[0], 1)
    results = measure(args)
    short = summary(results)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    facts = {"date": datetime.date.today().isoformat(), "commit": commit, "processor": processor(), "cores": os.cpu_count(), "load": load_before,
             "models": args.models, "pods": args.models * workload.PODS_PER_MODEL, "nodes": workload.node_count(args.models), "seed": SEED}
    if not args.quick:
        stored = ROOT / "docs/benchmarks"
        (stored / "operator.json").write_text(json.dumps({**facts, "summary": short, "results": results}, indent=1) + "\n")
        (stored / "operator.md").write_text(report.page(facts, short, results))
    print(f"facts: {facts}")
    for name, part in results.items():
        print(f"{name}: {json.dumps(part)}")
    print("\n".join(report.target_rows(short)))
    print("RESULT " + json.dumps(short))


if __name__ == "__main__":
    main()
