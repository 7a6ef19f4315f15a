# SPDX-License-Identifier: Apache-2.0
"""What is put into the cluster: nodes of kwok, and Models of two groups of five pods. What is seen of them, with the times of edits."""
import collections
import concurrent.futures
import dataclasses
import threading

import kube

GROUPS, PODS_PER_GROUP = 2, 5
PODS_PER_MODEL = GROUPS * PODS_PER_GROUP
PODS_PER_NODE = 110  # what a kubelet allows
MODELS_PER_NAMESPACE = 100
FIRST_SEQUENCES = 8
MODEL_LABEL = "rempart.dev/model"


def node(index: int) -> dict:
    name = f"kwok-{index}"
    room = {"cpu": "64", "memory": "256Gi", "pods": str(PODS_PER_NODE)}
    return {"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
            "status": {"allocatable": room, "capacity": room}}


def key_of(index: int) -> tuple:
    return f"team-{index // MODELS_PER_NAMESPACE}", f"model-{index}"


def model(index: int) -> dict:
    namespace, name = key_of(index)
    return {"apiVersion": "serving.rempart.dev/v1alpha1", "kind": "Model", "metadata": {"name": name, "namespace": namespace},
            "spec": {"source": {"uri": f"file:///models/{name}.gguf"}, "servedNames": [name], "device": "cpu", "replicas": GROUPS,
                     "parallelism": {"tensor": PODS_PER_GROUP, "ranksPerPod": 1},
                     "engine": {"contextLength": 1024, "maxSequences": FIRST_SEQUENCES},
                     # No worker runs, so that none can say that it has finished what it ran: nothing is waited for.
                     "rollout": {"drainSeconds": 0},
                     "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}}}


def create_all(client: kube.Kube, path_of, objects: list) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: client.send("POST", path_of(one), one), objects))


def node_count(models: int) -> int:
    return max(models * PODS_PER_MODEL // 100, 3)


def create_nodes(client: kube.Kube, models: int) -> None:
    create_all(client, lambda _: "/api/v1/nodes", [node(i) for i in range(node_count(models))])


def create_namespaces(client: kube.Kube, models: int) -> None:
    names = sorted({key_of(i)[0] for i in range(models)})
    create_all(client, lambda _: "/api/v1/namespaces",
               [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ["rempart", *names]])
    # The chart makes it; the operator copies it beside the workers.
    client.send("POST", "/api/v1/namespaces/rempart/secrets", {
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "rempart-worker-tls"},
        "stringData": {"ca.crt": "ca", "tls.crt": "certificate", "tls.key": "key"}})


def create_models(client: kube.Kube, models: int) -> None:
    create_all(client, lambda one: f"{kube.MODELS}/namespaces/{one['metadata']['namespace']}/models", [model(i) for i in range(models)])


@dataclasses.dataclass
class Edit:
    """Times are seconds since `sent`, which is just before the request: what the API server takes for it is in all of them."""

    sent: float
    generation: int | None = None      # of the Model, once the API server has answered
    applied: float | None = None       # the first StatefulSet of the Model has the new template
    statuses: list = dataclasses.field(default_factory=list)  # (time, observedGeneration, whether all groups have rolled)

    def first(self, which) -> float | None:
        if self.generation is None:
            return None
        return next((at - self.sent for at, observed, rolled in self.statuses if observed >= self.generation and which(rolled)), None)

    @property
    def told(self) -> float | None:
        return self.first(lambda rolled: True)

    @property
    def rolled(self) -> float | None:
        return self.first(lambda rolled: rolled)


def is_whole(status: dict) -> bool:
    """All groups answer requests, and all run the configuration of this status."""
    return status.get("readyReplicas", 0) == GROUPS and status.get("rollout", {}).get("updatedGroups", 0) == GROUPS


class Seen:
    """Kept by two watches: Models whole, StatefulSets by their metadata, whose generation moves with what the operator applies and not
    with their status."""

    def __init__(self, client: kube.Kube):
        self.client = client
        self.lock = threading.Lock()
        self.whole, self.set_generations, self.edits = {}, {}, {}
        self.watches = [kube.Watch(client, f"{kube.MODELS}/models", self.on_model),
                        kube.Watch(client, "/apis/apps/v1/statefulsets?labelSelector=app.kubernetes.io/managed-by%3Drempart-operator",
                                   self.on_set, metadata_only=True)]

    def on_model(self, at: float, kind: str, found: dict) -> None:
        key = found["metadata"]["namespace"], found["metadata"]["name"]
        status = found.get("status", {})
        observed = status.get("observedGeneration", 0)
        whole = kind != "DELETED" and is_whole(status) and observed == found["metadata"]["generation"]
        with self.lock:
            self.whole[key] = whole
            if key in self.edits:
                self.edits[key].statuses.append((at, observed, is_whole(status)))

    def on_set(self, at: float, _: str, found: dict) -> None:
        about = found["metadata"]
        with self.lock:
            before = self.set_generations.get((about["namespace"], about["name"]), 0)
            self.set_generations[about["namespace"], about["name"]] = about["generation"]
            edit = self.edits.get((about["namespace"], about["labels"][MODEL_LABEL]))
            if edit is not None and edit.applied is None and about["generation"] > before > 0:
                edit.applied = at - edit.sent

    def check(self) -> None:
        for watch in self.watches:
            if watch.broken is not None:
                raise RuntimeError(f"watch of {watch.path}: {watch.broken}")

    def whole_count(self) -> int:
        with self.lock:
            return sum(self.whole.values())

    def not_yet(self, keys: list, what: str) -> int:
        with self.lock:
            return sum(1 for key in keys if getattr(self.edits[key], what) is None)

    def begin(self, key: tuple, at: float) -> Edit:
        with self.lock:
            self.edits[key] = Edit(at)
            return self.edits[key]


class Editor:
    """Changes how many sequences a Model runs at once: a new template for both of its groups, which go one after the other."""

    def __init__(self, client: kube.Kube, seen: Seen, clock):
        self.client, self.seen, self.clock = client, seen, clock
        self.values = collections.Counter()

    def edit(self, key: tuple) -> None:
        self.values[key] += 1
        edit = self.seen.begin(key, self.clock())
        answer = self.client.send("PATCH", f"{kube.MODELS}/namespaces/{key[0]}/models/{key[1]}",
                                  {"spec": {"engine": {"maxSequences": FIRST_SEQUENCES + self.values[key]}}}, "application/merge-patch+json")
        edit.generation = answer["metadata"]["generation"]
