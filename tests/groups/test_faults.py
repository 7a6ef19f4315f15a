# SPDX-License-Identifier: Apache-2.0
"""The fault table on a real cluster of three nodes: three ranks of SmolLM2 in pods on three nodes, under load. Each fault is
measured, and checked for what must hold: no wrong token, no lost request, the right member named, service back, the weights of
those who survive not read again. What is right is what one rank alone says."""
import json
import os
import pathlib
import time

import pytest

from conftest import NAMESPACE, ROOT, condition, eventually, is_ready, model
from faults import TABLE, Ends, Fault, kill, signal, weight_bytes_read, worker_pid
from group import Group, single_answers
from traffic import Traffic

GEMMA = os.environ.get("REMPART_TEST_GEMMA", "gemma3-270m-q4_k_m.gguf")
SMOLLM = "smollm2-135m-instruct-q4_1.gguf"
RESULTS: list[dict] = []


@pytest.fixture(scope="module")
def smollm(kube, namespace, client):
    group = Group(kube, client, NAMESPACE, "group", SMOLLM, 3)
    group.expected = single_answers(kube, client, SMOLLM)
    group.serve()
    yield group
    group.close()


def measure(group: Group, fault: Fault) -> dict:
    group.settle()
    epoch = group.status().get("epoch", 0)
    processes = {pod: worker_pid(pod) for pod in group.pods}
    read = {pod: weight_bytes_read(pid) for pod, pid in processes.items()}
    came_back = False
    with Ends(processes) as ends, Traffic(group.client, group.served, group.expected, resends=fault.cuts_connections,
                                          chat=group.chat) as traffic:
        assert traffic.wait_for(3, 120), f"no answers before the fault: {traffic.outcome.lost}"
        struck = time.monotonic()
        try:
            blamed = fault.strike(group)
            if fault.ends_epoch:
                group.await_epoch_after(epoch, 240)
            came_back = traffic.wait_for(6, 240)
            time.sleep(max(0.0, struck + fault.hold_seconds - time.monotonic()))
        finally:
            fault.mend(group)
        time.sleep(fault.aftermath_seconds)
        traffic.wait_for(3, 60)
    outcome = traffic.outcome
    blame = group.watch.first_blame(struck, epoch, fault.blame, blamed) if fault.blame else None
    ended = min((ends.at[pod] for pod in blamed if pod in ends.at), default=None)
    row = {"model": group.name, "fault": fault.name, "detect_seconds": round(blame[0], 2) if blame else None,
           "recover_seconds": round(outcome.longest_gap(struck), 2), "lost_requests": len(outcome.lost),
           "wrong_tokens": len(outcome.wrong), "completed": outcome.completed, "resent": outcome.resent,
           "blamed": blame[1] if blame else ""}
    row["ended_after_seconds"] = round(ended - struck, 2) if ended else None
    later = group.watch.first_blame(struck, epoch, fault.blame_later, blamed) if fault.blame_later else None
    row["blamed_later"], row["blamed_later_seconds"] = (later[1], round(later[0], 2)) if later else ("", None)
    survivors = [pod for pod in processes if pod not in blamed] if fault.survivors else []
    after = {pod: (worker_pid(pod), weight_bytes_read(worker_pid(pod))) for pod in survivors}
    row["survivors_read_again"] = sum(count - read[pod] for pod, (pid, count) in after.items())
    row["survivors_restarted"] = sum(pid != processes[pod] for pod, (pid, count) in after.items())
    row["load"] = round(os.getloadavg()[0], 1)
    RESULTS.append(row)
    print("\n" + json.dumps(row))
    assert came_back, f"no answers after the fault: {outcome.lost}"
    assert outcome.wrong == []
    assert outcome.lost == []
    if fault.blame:
        assert blame is not None, f"nobody of {blamed} was named"
    if fault.blame_later:
        assert later is not None, f"nobody of {blamed} was named in {fault.blame_later}"
    if fault.blame == "lastFailure":
        others = [pod for pod in processes if pod not in blamed and pod in blame[1]]
        assert others == [], f"{blame[1]!r} names {others}; it was {blamed}"
    assert (row["survivors_restarted"], row["survivors_read_again"]) == (0, 0)
    return row


@pytest.mark.parametrize("fault", TABLE, ids=[f.name for f in TABLE])
def test_fault(smollm, fault):
    measure(smollm, fault)


@pytest.mark.parametrize("tensor", [2, 4])
def test_gemma_over_pods(kube, namespace, client, tensor):
    """One KV head for all ranks: it is held by each of them."""
    group = Group(kube, client, NAMESPACE, f"gemma-{tensor}", GEMMA, tensor)
    group.chat = False
    group.expected = single_answers(kube, client, GEMMA, group.chat)
    group.serve()
    try:
        assert len(group.pods) == tensor
        measure(group, Fault("kill -9 a rank", lambda env: kill([env.follower], signal.SIGKILL), survivors=True))
        measure(group, Fault("SIGSTOP the leader", lambda env: kill([env.leader], signal.SIGSTOP), survivors=True))
    finally:
        group.close()


def test_stages_over_pods(kube, namespace, client):
    """Layers in three pods on three nodes, instead of shares of every layer."""
    group = Group(kube, client, NAMESPACE, "stages", SMOLLM, 1, pipeline=3)
    group.expected = single_answers(kube, client, SMOLLM)
    group.serve()
    try:
        assert len(group.pods) == 3
        measure(group, Fault("kill -9 a stage", lambda env: kill([env.follower], signal.SIGKILL), survivors=True))
        measure(group, Fault("SIGSTOP a stage", lambda env: kill([env.follower], signal.SIGSTOP), survivors=True))
    finally:
        group.close()


def test_ranks_that_do_not_divide_are_refused_with_those_that_do(kube, namespace):
    kube.apply(model("odd", parallelism={"tensor": 2, "ranksPerPod": 1}))
    try:
        def refused():
            for kind in ("Fits", "Accepted", "WeightsAvailable", "Ready"):
                found = condition(kube.get("model", "odd"), kind)
                if "1, 3, 9 ranks only" in found.get("message", "") and found["status"] == "False":
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
