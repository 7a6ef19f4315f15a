# SPDX-License-Identifier: Apache-2.0
"""One group on the cluster: its manifest, where its pods are, and what its status says over time."""
import itertools
import json
import subprocess
import threading
import time

import openai

from conftest import NAMESPACE, eventually, is_ready, model
from traffic import QUESTIONS, ask

NODES = 3
RESOURCES = {"requests": {"cpu": "100m", "memory": "200Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}}


class Watch:
    """Every status of a Model as the API server tells it, with the time of its arrival."""

    def __init__(self, name: str):
        self.name = name
        self.seen: list[tuple[float, dict]] = []
        self.stopping = False
        self.process = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.stopping:
            self.process = subprocess.Popen(
                ["kubectl", "-n", NAMESPACE, "get", "model", self.name, "--watch", "-o", "json"], stdout=subprocess.PIPE,
                text=True, stderr=subprocess.DEVNULL)
            text = ""
            for line in self.process.stdout:
                text += line
                if line.rstrip() == "}":
                    self.seen.append((time.monotonic(), json.loads(text).get("status") or {}))
                    text = ""
            time.sleep(0.5)

    def close(self):
        self.stopping = True
        self.process.terminate()

    def latest(self) -> dict:
        return self.seen[-1][1] if self.seen else {}

    def first_blame(self, since: float, epoch: int, where: str, pods: list[str]) -> tuple[float, str] | None:
        """When a status first named one of `pods` in the field `where` of its group or member, and how."""
        for at, status in list(self.seen):
            for group in status.get("groups") or []:
                counted = where != "lastFailure" or group.get("countedEpoch", 0) >= epoch
                texts = [group.get(where, "")]
                texts += [f"{m['pod']} on {m.get('node')}: {m[where]}" for m in group.get("members") or [] if m.get(where)]
                for text in texts:
                    if at > since and counted and any(pod in text for pod in pods):
                        return at - since, text
        return None


def manifest(name: str, file: str, tensor: int, context_length: int = 1024, pipeline: int = 1) -> dict:
    return model(name, source={"uri": f"pvc://models/{file}"}, servedNames=[f"test-{name}"],
                 parallelism={"tensor": tensor, "pipeline": pipeline, "ranksPerPod": 1}, resources=RESOURCES,
                 engine={"contextLength": context_length, "maxSequences": 8, "threads": 1, "arithmetic": "exact"})


def single_answers(kube, client: openai.OpenAI, file: str, chat: bool = True) -> list[str]:
    """What one rank says to the questions."""
    kube.apply(manifest("single", file, 1))
    try:
        eventually("one rank serves", lambda: is_ready(kube, "single"), 300)
        return [ask(client, "test-single", i, chat=chat) for i in range(len(QUESTIONS))]
    finally:
        kube.delete("model", "single")


class Group:
    def __init__(self, kube, client: openai.OpenAI, namespace: str, name: str, file: str, tensor: int, pipeline: int = 1):
        self.kube, self.client, self.namespace, self.name, self.file = kube, client, namespace, name, file
        self.tensor, self.pipeline, self.ranks = tensor, pipeline, tensor * pipeline
        self.served, self.nodes, self.expected = f"test-{name}", NODES, []
        self.lengths = itertools.count(1025)
        self.pods, self.leader, self.follower, self.far_node = [], "", "", "node-1"
        self.watch: Watch | None = None
        self.chat = True  # whether it has a chat template

    def serve(self):
        self.kube.apply(manifest(self.name, self.file, self.tensor, pipeline=self.pipeline))
        self.watch = Watch(self.name)
        self.await_ready(300)
        self.find()

    def close(self):
        if self.watch is not None:
            self.watch.close()
        self.kube.delete("model", self.name)

    def edit_model(self):
        self.kube.apply(manifest(self.name, self.file, self.tensor, next(self.lengths), self.pipeline))

    def await_ready(self, timeout_s: float):
        eventually(f"{self.ranks} ranks serve", lambda: is_ready(self.kube, self.name), timeout_s)

    def status(self) -> dict:
        return (((self.kube.get("model", self.name) or {}).get("status") or {}).get("groups") or [{}])[0]

    def await_epoch_after(self, epoch: int, timeout_s: float):
        def formed():
            group = (self.watch.latest().get("groups") or [{}])[0]
            return group.get("epoch", 0) > epoch and group.get("phase") == "Ready"
        eventually(f"an epoch after {epoch} serves", formed, timeout_s)

    def places(self) -> dict[str, str]:
        """The node of each pod."""
        pods = self.kube.list("pods", selector=f"rempart.dev/model={self.name}")
        return {p["metadata"]["name"]: p["spec"].get("nodeName", "") for p in
                sorted(pods, key=lambda p: p["metadata"]["name"]) if not p["metadata"].get("deletionTimestamp")}

    def find(self):
        places = self.places()
        self.pods = list(places)
        self.leader = self.pods[0]
        there = [pod for pod, node in places.items() if node == self.far_node and pod != self.leader]
        self.follower = (there or self.pods[1:])[0]

    def renew_restarted(self):
        """A kubelet starts a container again at once, but 10 s later when it ended twice within ten minutes, then 20 s: no row
        shall wait because of those before."""
        for pod in self.kube.list("pods", selector=f"rempart.dev/model={self.name}"):
            if not any(c.get("restartCount") for c in pod["status"].get("containerStatuses") or []):
                continue
            epoch = self.status().get("epoch", 0)
            self.kube.run("-n", self.namespace, "delete", "pod", pod["metadata"]["name"], "--grace-period=1")
            self.await_epoch_after(epoch, 120)
            self.await_ready(120)

    def settle(self):
        """Ready, on as many nodes as there are, with the failures of the last fault forgotten."""
        self.kube.run("-n", self.namespace, "annotate", "model", self.name, f"rempart.dev/retry={time.time()}", "--overwrite")
        self.kube.run("wait", "--for=condition=Ready", "node", "--all", "--timeout=120s")
        eventually("no node is tainted", lambda: not any(n["spec"].get("taints") for n in self.kube.list("nodes", "default")), 120)
        self.await_ready(300)
        self.renew_restarted()
        wanted = min(self.ranks, self.nodes)
        for _ in range(4):
            places = self.places()
            doubled = [pod for pod, node in places.items() if list(places.values()).count(node) > 1]
            if len(set(places.values())) >= wanted:
                break
            epoch = self.status().get("epoch", 0)
            self.kube.run("-n", self.namespace, "delete", "pod", doubled[-1], "--grace-period=1")
            self.await_epoch_after(epoch, 120)
            self.await_ready(120)
        assert len(set(self.places().values())) >= wanted, f"not on {wanted} nodes: {self.places()}"
        self.find()
