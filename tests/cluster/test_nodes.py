# SPDX-License-Identifier: Apache-2.0
"""dev/cluster itself: two nodes, and GPUs that only the API server believes in."""
import json
import subprocess

from conftest import NAMESPACE, ROOT, eventually


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
