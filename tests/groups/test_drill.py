# SPDX-License-Identifier: Apache-2.0
"""`rempart drill` on a real group: what it breaks is broken and mended, and the report says so."""
import json
import os
import pathlib
import signal
import subprocess

import pytest

from conftest import NAMESPACE, ROOT, eventually
from faults import worker_pid
from group import Group

SMOLLM = "smollm2-135m-instruct-q4_1.gguf"
REMPART = pathlib.Path(os.environ.get("REMPART_TEST_BIN", ROOT / "build" / "dev" / "bin")) / "rempart"


@pytest.fixture(scope="module")
def group(kube, namespace, client):
    group = Group(kube, client, NAMESPACE, "drilled", SMOLLM, 3)
    group.serve()
    yield group
    group.close()


@pytest.fixture(scope="module")
def words(base_url, api_key, tmp_path_factory):
    key = tmp_path_factory.mktemp("drill") / "key"
    key.write_text(api_key + "\n")
    return ["--model", "drilled", "-n", NAMESPACE, "--url", base_url, "--api-key-file", str(key)]


def drill(kind: str, *words: str) -> subprocess.CompletedProcess:
    done = subprocess.run([str(REMPART), "drill", kind, *words, "--confirm", f"{NAMESPACE}/drilled"],
                          capture_output=True, text=True, timeout=500, check=False)
    print(done.stdout, done.stderr)
    return done


def stored_reports(kube, kind: str) -> list[dict]:
    found = kube.list("configmaps", selector=f"rempart.dev/drill={kind},rempart.dev/drill-model=drilled")
    return [json.loads(c["data"]["report.json"]) for c in found]


def helpers(kube) -> list[dict]:
    return kube.list("pods", selector="app.kubernetes.io/component=drill")


def test_nothing_is_broken_without_confirmation(kube, group, words):
    group.settle()
    before = {pod: worker_pid(pod) for pod in group.pods}
    done = subprocess.run([str(REMPART), "drill", "kill-rank", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"--confirm {NAMESPACE}/drilled" in done.stderr
    assert {pod: worker_pid(pod) for pod in group.pods} == before


@pytest.mark.parametrize("kind", ["kill-rank", "freeze-rank", "cut-node"])
def test_a_broken_member_is_named_and_no_request_lost(kube, group, words, kind):
    group.settle()
    place = group.places()
    pod = next(p for p in reversed(group.pods) if place[p] != "node-0")
    rank = str(group.pods.index(pod))
    process = worker_pid(pod)
    done = drill(kind, *words, "--rank", rank)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not pathlib.Path(f"/proc/{process}").exists() or kind == "cut-node"
    report = stored_reports(kube, kind)[-1]
    assert (report["pod"], report["node"]) == (pod, place[pod])
    assert (report["lost_requests"], report["wrong_answers"], report["served_again"]) == (0, 0, True)
    assert pod in report["named_as"]
    assert report["delayed_requests"] > 0
    assert helpers(kube) == []
    assert not any(n["spec"].get("unschedulable") for n in kube.list("nodes", "default"))


def test_a_drained_node_is_left_and_uncordoned(kube, group, words):
    group.settle()
    place = group.places()
    pod = next(p for p in reversed(group.pods) if place[p] != "node-0")
    done = drill("drain-node", *words, "--rank", str(group.pods.index(pod)))
    assert done.returncode == 0, done.stdout + done.stderr
    report = stored_reports(kube, "drain-node")[-1]
    assert (report["lost_requests"], report["wrong_answers"]) == (0, 0)
    assert group.places()[pod] != place[pod]
    assert not any(n["spec"].get("unschedulable") for n in kube.list("nodes", "default"))


def test_an_interrupted_drill_mends_what_it_broke(kube, group, words):
    group.settle()
    pod = group.pods[-1]
    process = worker_pid(pod)
    running = subprocess.Popen([str(REMPART), "drill", "freeze-rank", *words, "--seconds", "600", "--confirm",
                                f"{NAMESPACE}/drilled"], stdout=subprocess.PIPE, text=True)
    for line in running.stdout:
        if line.strip() == "drill: struck":
            break
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=120) == 1
    assert helpers(kube) == []
    state = pathlib.Path(f"/proc/{process}/stat")
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "T"
    eventually("the group serves", lambda: (group.status() or {}).get("phase") == "Ready", 120)
