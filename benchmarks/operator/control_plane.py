# SPDX-License-Identifier: Apache-2.0
"""A control plane that nobody else sees: etcd, the API server, the controller manager, the scheduler and kwok as child processes, on free
ports of loopback and in a folder of its own. Whatever ends this process, ends them."""
import ctypes
import json
import os
import pathlib
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

KUBE_BIN = pathlib.Path(os.environ.get("KUBE_BIN", ""))
KWOK = os.environ.get("KWOK", "")
STAGES = pathlib.Path(__file__).with_name("kwok_stages.yaml")
OPERATOR_USER = "system:serviceaccount:rempart:rempart-operator"
# Who may come in, besides service accounts. What an installer sets up with certificates.
USERS = {"admin": "system:masters", "kwok": "system:masters", "system:kube-controller-manager": "", "system:kube-scheduler": ""}
PR_SET_PDEATHSIG = 1


def say(text: str) -> None:
    print(f"operator: {text}", file=sys.stderr, flush=True)


def free_ports(count: int) -> list:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """One program with a log. It has a process group of its own: a Ctrl-C is for the benchmark, which ends it."""

    def __init__(self, name: str, words: list, folder: pathlib.Path):
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([str(word) for word in words], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            start_new_session=True, preexec_fn=die_with_parent)
        self.pid = self.process.pid

    def check(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text(errors='replace')[-3000:]}")

    def stop(self, how: int = signal.SIGTERM, seconds: float = 30) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class ControlPlane:
    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.etcd_port, self.peer_port, self.port = free_ports(3)
        self.server = f"https://127.0.0.1:{self.port}"
        self.tokens = {user: secrets.token_hex(16) for user in USERS}
        self.audit_log = folder / "audit.log"
        self.processes = []

    def start(self) -> None:
        self.start_etcd()
        self.start_api_server()
        self.start_controllers()
        self.run("kwok", KWOK, "--kubeconfig", self.kubeconfig("kwok", self.tokens["kwok"]), "--manage-all-nodes=true",
                 "--node-lease-duration-seconds=40", "--config", STAGES)

    def run(self, name: str, *words) -> Process:
        self.processes.append(Process(name, list(words), self.folder))
        return self.processes[-1]

    def check(self) -> None:
        for process in self.processes:
            process.check()

    def stop(self) -> None:
        """All data goes away with it: nothing needs to end in good order."""
        for process in reversed(self.processes):
            process.kill()

    def start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{self.peer_port}"
        self.run("etcd", KUBE_BIN / "etcd", "--name=bench", f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync",
                 f"--quota-backend-bytes={4 << 30}", f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
                 f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=bench={peer}", "--log-level=warn")

    def start_api_server(self) -> None:
        users = self.folder / "users.csv"
        users.write_text("".join(f"{self.tokens[user]},{user},{user}" + (f",{group}" if group else "") + "\n" for user, group in USERS.items()))
        key = self.folder / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        # Every request of the operator and nobody else's: counted beside its own metrics.
        policy = self.folder / "audit-policy.json"
        policy.write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived", "ResponseStarted"],
                                      "rules": [{"level": "Metadata", "users": [OPERATOR_USER]}, {"level": "None"}]}))
        self.run("kube-apiserver", KUBE_BIN / "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
                 "--bind-address=127.0.0.1", f"--secure-port={self.port}", f"--cert-dir={self.folder / 'cert'}",
                 # An address that nobody has: the Service `kubernetes` has no endpoints here.
                 "--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16",
                 "--authorization-mode=RBAC", "--allow-privileged", f"--token-auth-file={users}",
                 f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
                 "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                 f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}", "--audit-log-maxsize=10000")
        self.wait_until(180, "API server", self.is_ready)

    def start_controllers(self) -> None:
        # Their own defaults, 20 requests a second, would be what is measured.
        self.run("kube-controller-manager", KUBE_BIN / "kube-controller-manager",
                 f"--kubeconfig={self.kubeconfig('controllers', self.tokens['system:kube-controller-manager'])}",
                 "--secure-port=0", "--leader-elect=false", "--use-service-account-credentials",
                 f"--service-account-private-key-file={self.folder / 'service-accounts.key'}", "--allocate-node-cidrs=false",
                 "--kube-api-qps=1000", "--kube-api-burst=2000", "--concurrent-statefulset-syncs=20", "--concurrent-gc-syncs=20",
                 # The nodes' lives are played on the same busy processor: nobody is to be declared dead for that.
                 "--node-monitor-grace-period=600s")
        config = self.folder / "scheduler.json"
        config.write_text(json.dumps({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
                                      "leaderElection": {"leaderElect": False},
                                      "clientConnection": {"kubeconfig": self.kubeconfig("scheduler", self.tokens["system:kube-scheduler"]),
                                                           "qps": 1000, "burst": 2000}}))
        self.run("kube-scheduler", KUBE_BIN / "kube-scheduler", f"--config={config}", "--secure-port=0")

    def kubeconfig(self, name: str, token: str) -> str:
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {"server": self.server, "certificate-authority": str(self.authority())}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": name}}]}))
        return str(path)

    def authority(self) -> pathlib.Path:
        """What the API server makes for itself where it is given no certificate; its own authority is in the same file."""
        return self.folder / "cert" / "apiserver.crt"

    def is_ready(self) -> bool:
        if not self.authority().exists():
            return False
        request = urllib.request.Request(f"{self.server}/readyz", headers={"Authorization": f"Bearer {self.tokens['admin']}"})
        try:
            context = ssl.create_default_context(cafile=str(self.authority()))
            with urllib.request.urlopen(request, timeout=5, context=context) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait_until(self, seconds: float, what: str, condition) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what}: not after {seconds} s")
            time.sleep(0.3)
