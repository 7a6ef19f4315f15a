# SPDX-License-Identifier: Apache-2.0
"""One Model from apply to nothing left, on a real API server with a real kubelet, seen by an OpenAI client.

The tests run in order; each starts from what the one before left.
"""
import subprocess
import threading
import time

import openai
import pytest
from conftest import NAMESPACE, condition, eventually, is_ready, model

NAME = "life"
SERVED = "test-life"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Traffic:
    """Clients that stream one answer after the other until told to stop; every failure is kept."""

    def __init__(self, client: openai.OpenAI, clients: int):
        self.client, self.stopping, self.failures, self.completed = client, threading.Event(), [], 0
        self.mu = threading.Lock()
        self.threads = [threading.Thread(target=self.run) for _ in range(clients)]

    def run(self):
        while not self.stopping.is_set():
            try:
                chunks = self.client.chat.completions.create(model=SERVED, messages=QUESTION, max_tokens=24, stream=True)
                finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
                assert finishes and finishes[-1] in ("stop", "length"), f"ended without a finish reason: {finishes}"
                with self.mu:
                    self.completed += 1
            except Exception as error:  # Whatever a client program would see counts as a failure.
                with self.mu:
                    self.failures.append(f"{type(error).__name__}: {error}")

    def wait_for(self, more: int):
        wanted = self.completed + more
        eventually(f"{more} more answers", lambda: self.completed >= wanted or self.failures)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=120)


@pytest.fixture(scope="module", autouse=True)
def leave_nothing(kube, namespace):
    yield
    kube.delete("model", NAME)


def pods(kube):
    return [p for p in kube.list("pods") if not p["metadata"].get("deletionTimestamp")]


def test_apply_becomes_ready(kube, namespace):
    kube.apply(model(NAME))
    kube.run("-n", NAMESPACE, "wait", "--for=condition=Ready", f"model/{NAME}", "--timeout=120s")
    now = kube.get("model", NAME)
    assert condition(now, "Accepted")["status"] == "True"
    assert now["status"]["phase"] == "Ready"
    assert len(pods(kube)) == 1


def test_worker_pods_meet_the_restricted_profile(kube):
    # The API server itself judges: a namespace that enforces the profile would have refused the pods.
    done = kube.run("label", "--dry-run=server", "--overwrite", "namespace", NAMESPACE,
                    "pod-security.kubernetes.io/enforce=restricted")
    assert "violate" not in done.stderr, done.stderr


def test_get_models_is_readable_at_a_glance(kube):
    lines = kube.run("-n", NAMESPACE, "get", "models").stdout.splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "READY", "GROUPS", "DEVICE", "SERVED", "AS", "AGE"]
    assert lines[1].split()[:6] == [NAME, "Ready", "True", "1/1", "cpu", SERVED]
    assert max(map(len, lines)) <= 120


def test_events_tell_what_happened(kube):
    events = kube.list("events")
    about = [e for e in events if e["involvedObject"]["kind"] == "Model" and e["involvedObject"]["name"] == NAME]
    assert about and all(e["reason"] and e["message"] for e in about)


def test_the_official_sdk_streams_an_answer(client):
    chunks = list(client.chat.completions.create(model=SERVED, messages=QUESTION, max_tokens=32, temperature=0, stream=True,
                                                 stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    assert len([c for c in chunks if c.choices]) > 3, "the answer came in one piece"
    usage = chunks[-1].usage
    assert usage.prompt_tokens > 5 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    whole = client.chat.completions.create(model=SERVED, messages=QUESTION, max_tokens=32, temperature=0)
    assert whole.choices[0].message.content == text


def test_the_model_is_listed_and_unknown_ones_are_not_found(client):
    assert SERVED in [entry.id for entry in client.models.list()]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=QUESTION)


def test_a_wrong_key_is_refused(base_url, namespace):
    stranger = openai.OpenAI(base_url=base_url, api_key="rk-not-a-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model=SERVED, messages=QUESTION)


def test_scaling_to_two_fails_no_request(kube, client):
    with Traffic(client, clients=3) as traffic:
        traffic.wait_for(2)
        kube.run("-n", NAMESPACE, "scale", "model", NAME, "--replicas=2")
        eventually("two groups ready", lambda: is_ready(kube, NAME, 2))
        traffic.wait_for(6)
    assert traffic.failures == []
    assert len(pods(kube)) == 2


def test_scaling_to_one_fails_no_request(kube, client):
    with Traffic(client, clients=2) as traffic:
        traffic.wait_for(2)
        kube.run("-n", NAMESPACE, "scale", "model", NAME, "--replicas=1")
        eventually("one group left", lambda: is_ready(kube, NAME, 1) and len(pods(kube)) == 1)
        traffic.wait_for(4)
    assert traffic.failures == []


def test_an_edit_is_carried_out(kube, client):
    before = pods(kube)[0]["metadata"]["uid"]
    kube.apply(model(NAME, servedNames=[SERVED, "test-life-alias"],
                     engine={"contextLength": 512, "maxSequences": 4, "threads": 1}))
    eventually("ready again", lambda: is_ready(kube, NAME) and [p["metadata"]["uid"] for p in pods(kube)] not in ([], [before]))
    eventually("the alias is served", lambda: "test-life-alias" in [entry.id for entry in client.models.list()], 30)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=SERVED, messages=[{"role": "user", "content": "word " * 600}])


def test_an_edit_to_ranks_that_do_not_divide_is_refused_with_those_that_do(kube):
    eventually("what divides the model is known", lambda: kube.get("model", NAME)["status"].get("tensorSizes") == [1, 3, 9], 30)
    done = kube.run("-n", NAMESPACE, "patch", "model", NAME, "--type=merge", "-p", '{"spec": {"parallelism": {"tensor": 2}}}', check=False)
    assert done.returncode != 0
    assert "does not divide this model; these do: 1, 3, 9" in done.stderr


def test_the_operator_may_die_at_any_moment(kube, client):
    """It dies right after an edit; its successor finishes the work, and what serves goes on serving."""
    with Traffic(client, clients=2) as traffic:
        traffic.wait_for(2)
        kube.run("-n", NAMESPACE, "scale", "model", NAME, "--replicas=2")
        kube.run("-n", "rempart", "delete", "pod", "-l", "app.kubernetes.io/component=operator", "--force", "--grace-period=0")
        traffic.wait_for(2)
        eventually("two groups ready", lambda: is_ready(kube, NAME, 2), 180)
        traffic.wait_for(4)
    assert traffic.failures == []
    assert len(pods(kube)) == 2


def test_a_killed_worker_comes_back(kube, client):
    victim = pods(kube)[0]["metadata"]
    kube.run("-n", NAMESPACE, "delete", "pod", victim["name"], "--force", "--grace-period=0")
    eventually("a new pod", lambda: len(pods(kube)) == 2 and victim["uid"] not in [p["metadata"]["uid"] for p in pods(kube)])
    eventually("ready again", lambda: is_ready(kube, NAME, 2))
    assert client.chat.completions.create(model=SERVED, messages=QUESTION, max_tokens=4).choices


def test_nothing_of_a_prompt_is_in_the_logs(kube, client):
    secret = "zebra-crossing-1789"
    client.chat.completions.create(model=SERVED, messages=[{"role": "user", "content": f"Repeat {secret}"}], max_tokens=8)
    for namespace in (NAMESPACE, "rempart"):
        for pod in kube.list("pods", namespace):
            logs = kube.run("-n", namespace, "logs", pod["metadata"]["name"], "--all-containers", check=False).stdout
            assert "zebra" not in logs


def test_delete_leaves_nothing(kube, client):
    started = time.monotonic()
    kube.delete("model", NAME)
    for kind in ("statefulsets", "pods", "services", "endpointslices"):
        eventually(f"no {kind} left", lambda kind=kind: kube.list(kind) == [], 60)
    eventually("no configuration left", lambda: [c["metadata"]["name"] for c in kube.list("configmaps")] == ["kube-root-ca.crt"], 30)
    assert time.monotonic() - started < 90
    eventually("the router forgot it", lambda: SERVED not in [entry.id for entry in client.models.list()], 30)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=SERVED, messages=QUESTION)


def test_an_upgrade_keeps_keys_and_certificates(kube, rempart, client):
    names = ("rempart-api-keys", "rempart-first-key", "rempart-authority", "rempart-operator-tls", "rempart-router-tls",
             "rempart-worker-tls")
    before = {name: kube.get("secret", name, "rempart")["data"] for name in names}
    done = subprocess.run(["helm", "upgrade", "rempart", "charts/rempart", "-n", "rempart", "--reuse-values", "--wait"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {name: kube.get("secret", name, "rempart")["data"] for name in names} == before
    assert client.models.list() is not None
