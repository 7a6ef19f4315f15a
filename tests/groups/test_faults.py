# SPDX-License-Identifier: Apache-2.0
"""The fault table on a real cluster of three nodes: three ranks of SmolLM2 in pods on three nodes, under load. Each fault is
measured, and checked for what must hold: no wrong token, no lost request, the right member named, service back."""
import json
import os
import pathlib
import subprocess
import threading
import time
import types

import pytest

from conftest import NAMESPACE, ROOT, condition, eventually, is_ready, model
from faults import TABLE
from traffic import QUESTIONS, Traffic, ask

NAME, SERVED, NODES = "group", "test-group", 3
RESULTS: list[dict] = []


class Watch:
    """Every status of the Model as the API server tells it, with the time of its arrival."""

    def __init__(self):
        self.seen: list[tuple[float, dict]] = []
        self.stopping = False
        self.process = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.stopping:
            self.process = subprocess.Popen(
                ["kubectl", "-n", NAMESPACE, "get", "model", NAME, "--watch", "-o", "json"], stdout=subprocess.PIPE, text=True,
                stderr=subprocess.DEVNULL)
            decoder, text = json.JSONDecoder(), ""
            for line in self.process.stdout:
                text += line
                if line.rstrip() == "}":
                    self.seen.append((time.monotonic(), decoder.decode(text).get("status") or {}))
                    text = ""
            time.sleep(0.5)

    def close(self):
        self.stopping = True
        self.process.terminate()

    def first_blame(self, since: float, epoch: int) -> tuple[float, str] | None:
        for at, status in list(self.seen):
            for group in status.get("groups") or []:
                if at > since and group.get("countedEpoch", 0) >= epoch:
                    return at - since, group.get("lastFailure", "")
        return None


def ready(kube) -> bool:
    return is_ready(kube, NAME)


def manifest(context_length: int = 1024) -> dict:
    return model(NAME, servedNames=[SERVED], parallelism={"tensor": 3, "ranksPerPod": 1},
                 engine={"contextLength": context_length, "maxSequences": 8, "threads": 1, "arithmetic": "exact"},
                 resources={"requests": {"cpu": "100m", "memory": "200Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}})


@pytest.fixture(scope="module")
def env(kube, namespace, client):
    kube.apply(manifest())
    eventually("three ranks serve", lambda: ready(kube), 300)
    pods = sorted((p for p in kube.list("pods", selector=f"rempart.dev/model={NAME}")), key=lambda p: p["metadata"]["name"])
    assert len({p["spec"]["nodeName"] for p in pods}) == NODES, "the ranks are not on three nodes"
    names = [p["metadata"]["name"] for p in pods]
    lengths = iter(range(1025, 2000))
    environment = types.SimpleNamespace(
        kube=kube, client=client, namespace=NAMESPACE, nodes=NODES, pods=names, leader=names[0], follower=names[1],
        far_node="node-1", edit_model=lambda: kube.apply(manifest(next(lengths))))
    environment.expected = [ask(client, SERVED, i) for i in range(len(QUESTIONS))]
    environment.watch = Watch()
    yield environment
    environment.watch.close()
    kube.delete("model", NAME)


def group_of(kube) -> dict:
    return (((kube.get("model", NAME) or {}).get("status") or {}).get("groups") or [{}])[0]


def follower_on(env, node: str) -> str:
    """The pod with a rank other than 0 on that node, or any follower."""
    pods = [p for p in env.kube.list("pods", selector=f"rempart.dev/model={NAME}") if not p["metadata"]["name"].endswith("-0")]
    there = [p["metadata"]["name"] for p in pods if p["spec"].get("nodeName") == node]
    return (there or [p["metadata"]["name"] for p in pods])[0]


def bytes_read(kube) -> dict[str, str]:
    return {p["metadata"]["name"]: p["metadata"]["uid"] for p in kube.list("pods", selector=f"rempart.dev/model={NAME}")}


@pytest.mark.parametrize("fault", TABLE, ids=[f.name for f in TABLE])
def test_fault(env, fault):
    kube = env.kube
    eventually("the group serves", lambda: ready(kube), 300)
    env.follower = follower_on(env, env.far_node)
    epoch = group_of(kube).get("epoch", 0)
    with Traffic(env.client, SERVED, env.expected) as traffic:
        assert traffic.wait_for(3, 120), f"no answers before the fault: {traffic.outcome.lost}"
        struck = time.monotonic()
        blamed = fault.strike(env)
        came_back = traffic.wait_for(6, 240)
        recovered = traffic.outcome.longest_gap(struck)
        time.sleep(2)
        fault.mend(env)
    eventually("the group serves again", lambda: ready(kube), 300)
    blame = env.watch.first_blame(struck, epoch) if fault.blames else None
    row = {"fault": fault.name, "detect_seconds": round(blame[0], 2) if blame else None, "recover_seconds": round(recovered, 2),
           "lost_requests": len(traffic.outcome.lost), "wrong_tokens": len(traffic.outcome.wrong),
           "completed": traffic.outcome.completed, "blamed": blame[1] if blame else ""}
    RESULTS.append(row)
    print("\n" + json.dumps(row))
    # Failures of the last fault must not exclude the nodes that the next one needs.
    kube.run("-n", NAMESPACE, "annotate", "model", NAME, f"rempart.dev/retry={time.time()}", "--overwrite")
    assert came_back, f"no answers after the fault: {traffic.outcome.lost}"
    assert traffic.outcome.wrong == []
    assert traffic.outcome.lost == []
    if fault.blames:
        assert blame is not None, "nobody was named"
        assert any(pod in blame[1] for pod in blamed), f"{blame[1]!r} names none of {blamed}"


@pytest.mark.parametrize("tensor", [2, 4])
def test_gemma_over_pods(kube, namespace, client, tensor):
    """One KV head for all ranks: it is held by each of them."""
    served = f"test-gemma-{tensor}"
    kube.apply(model(f"gemma-{tensor}", source={"uri": f"pvc://models/{os.environ.get('REMPART_TEST_GEMMA', 'gemma3-270m-q4_k_m.gguf')}"},
                     servedNames=[served], parallelism={"tensor": tensor, "ranksPerPod": 1}))
    try:
        eventually("its ranks serve", lambda: is_ready(kube, f"gemma-{tensor}"), 300)
        assert len(kube.list("pods", selector=f"rempart.dev/model=gemma-{tensor}")) == tensor
        assert ask(client, served, 0)
    finally:
        kube.delete("model", f"gemma-{tensor}")


def test_ranks_that_do_not_divide_are_refused_with_those_that_do(kube, namespace):
    kube.apply(model("odd", parallelism={"tensor": 2, "ranksPerPod": 1}))
    try:
        def refused():
            for kind in ("Fits", "Accepted", "WeightsAvailable", "Ready"):
                found = condition(kube.get("model", "odd"), kind)
                if found.get("status") == "False" and "3" in found.get("message", "") and "divide" in found["message"]:
                    return found
            return None
        eventually("a refusal with the list", refused, 180)
    finally:
        kube.delete("model", "odd")


def worst(key: str):
    values = [row[key] for row in RESULTS if row[key] is not None]
    return max(values, default=None)


@pytest.fixture(scope="session", autouse=True)
def report():
    yield
    if not RESULTS:
        return
    keys = ("detect_seconds", "recover_seconds", "lost_requests", "wrong_tokens")
    path = pathlib.Path(os.environ.get("REMPART_RECOVERY_JSON", ROOT / "build" / "recovery.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": RESULTS, "worst": {key: worst(key) for key in keys}}, indent=1) + "\n")
    print("\nRESULT " + json.dumps({key: worst(key) for key in keys}))
