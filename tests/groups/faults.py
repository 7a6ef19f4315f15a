# SPDX-License-Identifier: Apache-2.0
"""What can happen to a group on the test cluster, and how each is undone. The nodes are namespaces of this machine, so processes
are found by what their pods say in their environment."""
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import typing

STATE = pathlib.Path(os.environ.get("REMPART_CLUSTER_STATE", "/var/lib/rempart-cluster"))
ROOT = pathlib.Path(__file__).resolve().parents[2]
METRICS = "http://127.0.0.1:9090/metrics"
BRIDGE = "rmp-nodes"
PARTITION = "rempart_test_partition"


def worker_pid(pod: str) -> int:
    """The process rempart-worker of a pod, seen from the machine."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"rempart-worker\0--config" not in (folder / "cmdline").read_bytes():
                continue
            if f"REMPART_POD_NAME={pod}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    raise LookupError(f"no process of pod {pod}")


class Ends:
    """When processes ended, as seen from the machine: what breaks a member may itself take its time, a kubelet that looks for a full
    disk every ten seconds, for one."""

    def __init__(self, pids: dict[str, int]):
        self._left = dict(pids)
        self.at: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join()

    def _run(self):
        while not self._stopping.wait(0.02):
            for pod, pid in list(self._left.items()):
                if not pathlib.Path(f"/proc/{pid}").exists():
                    self.at[pod] = time.monotonic()
                    del self._left[pod]


def router_pids(supervisors: bool) -> list[int]:
    """Of each router the supervisor, whose end is the end of its container, or the process that serves."""
    pids = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            ours = words[0].endswith(b"rempart-router") and any(word.startswith(b"/etc/rempart") for word in words)
            if ours and (b"--listeners" not in words) == supervisors:
                pids.append(int(folder.name))
    return sorted(pids)


def process_pid(name: str) -> int:
    """A process that dev/cluster has started: "node-1-kubelet", "kube-apiserver"."""
    return int((STATE / "run" / f"{name}.pid").read_text())


def weight_bytes_read(pid: int) -> int:
    """What the worker says it has read of the weights since it began, asked inside its pod's network."""
    fetch = f"import urllib.request; print(urllib.request.urlopen('{METRICS}', timeout=5).read().decode())"
    done = subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", fetch],
                          capture_output=True, text=True, timeout=20, check=True)
    for line in done.stdout.splitlines():
        if line.startswith("rempart_worker_weight_bytes_read_total"):
            return int(float(line.split()[-1]))
    raise LookupError(f"process {pid} has no metric of the bytes read")


def cluster_up(nodes: int) -> None:
    subprocess.run([str(ROOT / "dev" / "cluster"), "up", "--nodes", str(nodes)], check=True, capture_output=True)


def link(node: str, state: str) -> None:
    subprocess.run(["ip", "link", "set", f"rmp-veth{node.removeprefix('node-')}", state], check=True)


def pods_on(env, *nodes: str) -> list[str]:
    return [pod for pod, node in env.places().items() if node in nodes]


@dataclasses.dataclass
class Fault:
    """One row of the table: `strike` breaks something and names the pods that are to be blamed; `mend` undoes it."""
    name: str
    strike: typing.Callable
    mend: typing.Callable = lambda env: None
    # Where the blamed pod must be named first: "lastFailure" or "waitingFor" of the group's status, or "nodeWarning" of its member;
    # None: nobody is to blame.
    blame: str | None = "lastFailure"
    # Where it must be named as well, whenever that is.
    blame_later: str | None = None
    # Whether the group's epoch must end of it.
    ends_epoch: bool = True
    # Whether the processes of the other members must be the same afterwards, and must not have read weights again.
    survivors: bool = False
    # How long it lasts at least.
    hold_seconds: float = 0
    # How long what follows from its end is part of it.
    aftermath_seconds: float = 0
    # It breaks connections of clients: they send those requests again, as the SDK does by default.
    cuts_connections: bool = False


def kill(pods: list[str], how: signal.Signals) -> list[str]:
    pids = [worker_pid(pod) for pod in pods]
    for pid in pids:
        os.kill(pid, how)
    return pods


def delete_pod(env) -> list[str]:
    env.kube.run("-n", env.namespace, "delete", "pod", env.follower, "--wait=false")
    return [env.follower]


def stop_node_agents(env) -> list[str]:
    """Kubelet and containerd end; what runs goes on, so nothing may be lost and nobody is to blame."""
    for name in ("kubelet", "containerd"):
        os.kill(process_pid(f"{env.far_node}-{name}"), signal.SIGKILL)
    return []


def cut_node(env) -> list[str]:
    struck = pods_on(env, env.far_node)
    link(env.far_node, "down")
    return struck


def partition_half(env) -> list[str]:
    """node-0 on one side, with the control plane, the operator, the routers and the clients; the other nodes, who still see each
    other, on the other side. What clients send to the Service has its way to the bridge only until it is given a router's address:
    hence what leaves is judged last."""
    rules = f"""table inet {PARTITION} {{
      chain input {{ type filter hook input priority -300; iifname "{BRIDGE}" drop; }}
      chain postrouting {{ type filter hook postrouting priority 300; oifname "{BRIDGE}" drop; }}
      chain forward {{ type filter hook forward priority -300;
        iifname "{BRIDGE}" oifname != "{BRIDGE}" drop
        iifname != "{BRIDGE}" oifname "{BRIDGE}" drop
      }}
    }}"""
    struck = [pod for pod, node in env.places().items() if node != "node-0"]
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    return struck


def mend_partition(env) -> None:
    subprocess.run(["nft", "delete", "table", "inet", PARTITION], check=False, capture_output=True)


def filler(env) -> pathlib.Path:
    return STATE / env.far_node / "filler"


def empty_disk(env):
    """A kubelet whose disk was full has thrown away the images that no container used; here nobody pulls them."""
    filler(env).unlink(missing_ok=True)
    cluster_up(env.nodes)
    for image in sorted((ROOT / "build" / "images").glob("*.tar")):
        subprocess.run([str(ROOT / "dev" / "cluster"), "load", str(image)], check=True, capture_output=True)


def fill_disk(env) -> list[str]:
    """The node has a disk of its own (REMPART_NODE_DISK_MIB); its kubelet, which looks every ten seconds, must evict, and the group must
    leave it. Before it evicts it throws away images, so what that frees is taken, too. The member tells that the disk is full before
    anybody waits for it; and when it is evicted, it is who is waited for."""
    assert os.path.ismount(STATE / env.far_node), f"{env.far_node} has no disk of its own: start the cluster anew"
    struck, deadline = pods_on(env, env.far_node), time.monotonic() + 120
    while set(struck) & set(pods_on(env, env.far_node)) and time.monotonic() < deadline:
        left = os.statvfs(STATE / env.far_node)
        more = left.f_bavail * left.f_frsize - (4 << 20)
        if more > 0:
            size = filler(env).stat().st_size if filler(env).exists() else 0
            subprocess.run(["fallocate", "-l", str(size + more), str(filler(env))], check=True)
        time.sleep(1)
    return struck


def kill_operator_mid_rollout(env) -> list[str]:
    env.edit_model()
    time.sleep(1)
    env.kube.run("-n", "rempart", "delete", "pod", "-l", "app.kubernetes.io/component=operator", "--force", "--grace-period=0")
    return []


def end_router(env) -> list[str]:
    """As a rollout or a drained node ends it: one of the two."""
    pods = env.kube.list("pods", "rempart", "app.kubernetes.io/component=router")
    env.kube.run("-n", "rempart", "delete", "pod", pods[0]["metadata"]["name"], "--wait=false")
    return []


def kill_router(env) -> list[str]:
    """A client's connection dies with its router; the requests that were on it are the client's to send again."""
    os.kill(router_pids(supervisors=True)[0], signal.SIGKILL)
    return []


def crash_router(env) -> list[str]:
    """As a fault of its own would end it: the process that serves, not its supervisor."""
    os.kill(router_pids(supervisors=False)[0], signal.SIGKILL)
    return []


def kill_api_server(env) -> list[str]:
    os.kill(process_pid("kube-apiserver"), signal.SIGKILL)
    return []


def restart_api_server(env) -> list[str]:
    kill_api_server(env)
    time.sleep(5)
    cluster_up(env.nodes)
    return []


def crash_loop(env) -> list[str]:
    for _ in range(3):
        with contextlib.suppress(LookupError):
            os.kill(worker_pid(env.follower), signal.SIGKILL)
        time.sleep(4)
    return [env.follower]


TABLE = [
    Fault("kill -9 a rank", lambda env: kill([env.follower], signal.SIGKILL), survivors=True),
    Fault("kill -9 the leader", lambda env: kill([env.leader], signal.SIGKILL), survivors=True),
    Fault("kill two ranks at once", lambda env: kill(env.pods[1:3], signal.SIGKILL), survivors=True),
    Fault("SIGSTOP a rank", lambda env: kill([env.follower], signal.SIGSTOP), survivors=True),
    Fault("SIGSTOP the leader", lambda env: kill([env.leader], signal.SIGSTOP), survivors=True),
    Fault("delete a pod", delete_pod, blame="waitingFor", survivors=True),
    Fault("stop a node's kubelet and containerd", stop_node_agents, lambda env: cluster_up(env.nodes), blame=None,
          ends_epoch=False, survivors=True, hold_seconds=30),
    Fault("cut a node's network", cut_node, lambda env: link(env.far_node, "up"), survivors=True),
    Fault("partition half", partition_half, mend_partition, survivors=True),
    Fault("fill a node's disk", fill_disk, empty_disk, blame="nodeWarning", blame_later="waitingFor"),
    Fault("kill the operator in a rollout", kill_operator_mid_rollout, blame=None),
    Fault("end a router", end_router, blame=None, ends_epoch=False, survivors=True, hold_seconds=15),
    Fault("kill -9 a router", kill_router, blame=None, ends_epoch=False, survivors=True, hold_seconds=10, cuts_connections=True),
    Fault("crash a router's serving process", crash_router, blame=None, ends_epoch=False, survivors=True, hold_seconds=10,
          cuts_connections=True),
    # What follows from it takes up to a minute: controllers and kubelets come back with pauses that have grown.
    Fault("kill the API server and start it again", restart_api_server, lambda env: cluster_up(env.nodes), blame=None,
          ends_epoch=False, survivors=True, hold_seconds=75),
    Fault("kill the API server", kill_api_server, lambda env: cluster_up(env.nodes), blame=None, ends_epoch=False,
          survivors=True, hold_seconds=20, aftermath_seconds=75),
    Fault("crash-loop a rank", crash_loop, survivors=True),
]
