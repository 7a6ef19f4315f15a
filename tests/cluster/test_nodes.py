# SPDX-License-Identifier: Apache-2.0
"""dev/cluster itself: two nodes, and GPUs that only the API server believes in."""
import json
import subprocess
import time

from conftest import NAMESPACE, ROOT, condition, eventually, model


def fake_gpus(node: str, count: int) -> None:
    subprocess.run([str(ROOT / "dev" / "cluster"), "fake-gpus", node, str(count)], check=True, capture_output=True)


def test_all_nodes_run_the_same_version(kube):
    nodes = json.loads(kube.run("get", "nodes", "-o", "json").stdout)["items"]
    assert {"node-0", "node-1"} <= {n["metadata"]["name"] for n in nodes}
    assert len({n["status"]["nodeInfo"]["kubeletVersion"] for n in nodes}) == 1


def test_a_pod_is_scheduled_on_gpus_that_a_node_claims(kube, namespace):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gpu", "namespace": NAMESPACE},
           "spec": {"containers": [{"name": "pause", "image": "rempart.dev/pause:1", "imagePullPolicy": "Never",
                                    "resources": {"limits": {"nvidia.com/gpu": "2"}}}]}}
    kube.apply(pod)
    try:
        def unschedulable():
            conditions = kube.get("pod", "gpu")["status"].get("conditions") or []
            return [c for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False"]
        assert "nvidia.com/gpu" in eventually("a reason", unschedulable, 20)[0]["message"]
        fake_gpus("node-1", 2)
        eventually("scheduled", lambda: kube.get("pod", "gpu")["spec"].get("nodeName") == "node-1", 30)
    finally:
        fake_gpus("node-1", 0)
        kube.run("-n", NAMESPACE, "delete", "pod", "gpu", "--force", "--grace-period=0")


def test_a_model_on_gpus_gets_one_for_each_rank_and_says_what_is_wrong_with_them(kube, namespace):
    kube.apply(model("on-gpus", device="gpu", parallelism={"tensor": 2}, engine={"contextLength": 1024, "maxSequences": 8}))
    try:
        def pods():
            return kube.list("pods", selector="rempart.dev/model=on-gpus")

        def waits():
            return [c for p in pods() for c in p["status"].get("conditions") or [] if c["type"] == "PodScheduled" and c["status"] == "False"]
        assert "nvidia.com/gpu" in eventually("no node has GPUs", waits, 60)[0]["message"]
        eventually("the Model says so", lambda: condition(kube.get("model", "on-gpus"), "Fits").get("reason") == "Unschedulable", 60)
        fake_gpus("node-1", 1)
        time.sleep(2)
        assert waits(), "one of two is not enough"
        fake_gpus("node-1", 2)
        eventually("scheduled", lambda: any(p["spec"].get("nodeName") == "node-1" for p in pods()), 60)
        spec = next(p["spec"] for p in pods() if p["spec"].get("nodeName") == "node-1")
        resources = spec["containers"][0]["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "2"
        shared = [v["emptyDir"] for v in spec["volumes"] if (v.get("emptyDir") or {}).get("medium") == "Memory"]
        assert shared and all(v["sizeLimit"] for v in shared)
        # There is no GPU behind the number: the worker ends, and the Model says why.
        def fits():
            found = condition(kube.get("model", "on-gpus"), "Fits")
            return found if found.get("reason") == "DeviceUnavailable" else None
        found = eventually("why it does not start", fits, 120)
        assert found["status"] == "False" and "GPU 0 cannot be used" in found["message"], found
    finally:
        kube.delete("model", "on-gpus")
        fake_gpus("node-1", 0)
