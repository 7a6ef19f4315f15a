# SPDX-License-Identifier: Apache-2.0
"""What can happen to a group on the test cluster, and how each is undone. The nodes are namespaces of this machine, so processes
are found by what their pods say in their environment."""
import contextlib
import os
import pathlib
import signal
import subprocess
import time

STATE = pathlib.Path(os.environ.get("REMPART_CLUSTER_STATE", "/var/lib/rempart-cluster"))
ROOT = pathlib.Path(__file__).resolve().parents[2]


def worker_pid(pod: str) -> int:
    """The process rempart-worker of a pod, seen from the machine."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"rempart-worker\0--config" not in (folder / "cmdline").read_bytes():
                continue
            if f"REMPART_POD_NAME={pod}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    raise LookupError(f"no process of pod {pod}")


def process_pid(name: str) -> int:
    """A process that dev/cluster has started: "node-1-kubelet", "kube-apiserver"."""
    return int((STATE / "run" / f"{name}.pid").read_text())


def cluster_up(nodes: int) -> None:
    subprocess.run([str(ROOT / "dev" / "cluster"), "up", "--nodes", str(nodes)], check=True, capture_output=True)


def link(node: str, state: str) -> None:
    subprocess.run(["ip", "link", "set", f"rmp-veth{node.removeprefix('node-')}", state], check=True)


def pods_on(kube, namespace: str, node: str) -> list[str]:
    return [p["metadata"]["name"] for p in kube.list("pods", namespace) if p["spec"].get("nodeName") == node]


class Fault:
    """One row of the table: `strike` breaks something and names the pods that are to be blamed; `mend` undoes it."""

    def __init__(self, name: str, strike, mend=lambda env: None, blames: bool = True):
        self.name, self.strike, self.mend, self.blames = name, strike, mend, blames


def kill_rank(env) -> list[str]:
    os.kill(worker_pid(env.follower), signal.SIGKILL)
    return [env.follower]


def kill_leader(env) -> list[str]:
    os.kill(worker_pid(env.leader), signal.SIGKILL)
    return [env.leader]


def kill_two(env) -> list[str]:
    pids = [worker_pid(pod) for pod in env.pods[1:3]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return env.pods[1:3]


def freeze_rank(env) -> list[str]:
    os.kill(worker_pid(env.follower), signal.SIGSTOP)
    return [env.follower]


def delete_pod(env) -> list[str]:
    env.kube.run("-n", env.namespace, "delete", "pod", env.follower, "--wait=false")
    return [env.follower]


def stop_node_agents(env) -> list[str]:
    """Kubelet and containerd end; what runs goes on, so nothing may be lost and nobody is to blame."""
    for name in ("kubelet", "containerd"):
        os.kill(process_pid(f"{env.far_node}-{name}"), signal.SIGKILL)
    return []


def cut_node(env) -> list[str]:
    struck = pods_on(env.kube, env.namespace, env.far_node)
    link(env.far_node, "down")
    return struck


def mend_cut(env) -> None:
    link(env.far_node, "up")


def kill_operator_mid_rollout(env) -> list[str]:
    env.edit_model()
    time.sleep(1)
    env.kube.run("-n", "rempart", "delete", "pod", "-l", "app.kubernetes.io/component=operator", "--force", "--grace-period=0")
    return []


def kill_router(env) -> list[str]:
    """A client's connection dies with its router; the requests that were on it are the client's to send again."""
    env.kube.run("-n", "rempart", "delete", "pod", "-l", "app.kubernetes.io/component=router", "--wait=false")
    return []


def restart_api_server(env) -> list[str]:
    os.kill(process_pid("kube-apiserver"), signal.SIGKILL)
    return []


def crash_loop(env) -> list[str]:
    for _ in range(3):
        with contextlib.suppress(LookupError):
            os.kill(worker_pid(env.follower), signal.SIGKILL)
        time.sleep(4)
    return [env.follower]


def restart_cluster(env) -> None:
    cluster_up(env.nodes)


TABLE = [
    Fault("kill -9 a rank", kill_rank),
    Fault("kill -9 the leader", kill_leader),
    Fault("SIGSTOP a rank", freeze_rank),
    Fault("delete a pod", delete_pod),
    Fault("kill two ranks at once", kill_two),
    Fault("stop a node's kubelet and containerd", stop_node_agents, restart_cluster, blames=False),
    Fault("cut a node's network", cut_node, mend_cut),
    Fault("kill the operator in a rollout", kill_operator_mid_rollout, blames=False),
    Fault("end the router", kill_router, blames=False),
    Fault("kill the API server", restart_api_server, restart_cluster, blames=False),
    Fault("crash-loop a rank", crash_loop),
]
