# SPDX-License-Identifier: Apache-2.0
"""What the cluster tests share: kubectl, the installed chart, an OpenAI client, a namespace that goes away.

tests/parts/cluster starts the cluster, builds and loads the images, and names both in the environment:
KUBECONFIG, REMPART_TEST_VALUES (images/build's values file), REMPART_TEST_MODELS (folder of model files).
"""
import base64
import json
import os
import pathlib
import subprocess
import time

import openai
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "rempart"
NAMESPACE = "rempart-test"


class Kube:
    """kubectl, with JSON answers as dictionaries."""

    def run(self, *words: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(["kubectl", *words], input=stdin, capture_output=True, text=True, timeout=300, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done

    def get(self, kind: str, name: str, namespace: str = NAMESPACE) -> dict | None:
        done = self.run("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def list(self, kind: str, namespace: str = NAMESPACE, selector: str = "") -> list[dict]:
        words = ["-n", namespace, "get", kind, "-o", "json"] + (["-l", selector] if selector else [])
        return json.loads(self.run(*words).stdout)["items"]

    def apply(self, manifest: dict, check: bool = True) -> subprocess.CompletedProcess:
        return self.run("apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-",
                        stdin=json.dumps(manifest), check=check)

    def delete(self, kind: str, name: str, namespace: str = NAMESPACE) -> None:
        self.run("-n", namespace, "delete", kind, name, "--ignore-not-found", "--timeout=120s")


def eventually(what: str, condition, timeout_s: float = 120):
    """Waits for a true answer of `condition` and returns it; fails with its last answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.25)


def model(name: str, **spec) -> dict:
    """A Model that fits the test machine, with parts of its spec replaced; a value of None removes a part."""
    whole = {
        "source": {"uri": "pvc://models/smollm2-135m-instruct-q4_1.gguf"},
        "servedNames": [f"test-{name}"],
        "device": "cpu",
        "replicas": 1,
        # Exact arithmetic: the words of an answer do not depend on the processor's instructions.
        "engine": {"contextLength": 1024, "maxSequences": 8, "threads": 1, "arithmetic": "exact"},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": 2, "memory": "1Gi"}},
    }
    whole.update(spec)
    return {"apiVersion": "serving.rempart.dev/v1alpha1", "kind": "Model",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {key: value for key, value in whole.items() if value is not None}}


def condition(resource: dict | None, kind: str) -> dict:
    for entry in ((resource or {}).get("status") or {}).get("conditions") or []:
        if entry["type"] == kind:
            return entry
    return {}


def is_ready(kube: Kube, name: str, replicas: int = 1) -> bool:
    now = kube.get("model", name)
    status = (now or {}).get("status") or {}
    return (condition(now, "Ready").get("status") == "True" and status.get("readyReplicas") == replicas
            and status.get("observedGeneration") == now["metadata"]["generation"])


@pytest.fixture(scope="session")
def kube() -> Kube:
    return Kube()


def install(kube: Kube, *more_values: pathlib.Path) -> str:
    """The chart, installed with the images under test."""
    files = [word for file in (os.environ["REMPART_TEST_VALUES"], *more_values) for word in ("-f", str(file))]
    kube.run("apply", "--server-side", "--force-conflicts", "-f", str(CHART / "crds"))
    done = subprocess.run(["helm", "upgrade", "--install", "rempart", str(CHART), "--namespace", "rempart",
                           "--create-namespace", *files, "--wait", "--timeout", "120s"],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pods = kube.run("-n", "rempart", "describe", "pods", check=False).stdout
        logs = kube.run("-n", "rempart", "logs", "--prefix", "--tail=20", "-l", "app.kubernetes.io/name=rempart",
                        check=False).stdout
        pytest.fail(f"helm: {done.stderr}\n{pods[-3000:]}\n{logs}")
    return done.stdout


@pytest.fixture(scope="session")
def rempart(kube):
    return install(kube)


@pytest.fixture(scope="session")
def api_key(kube, rempart) -> str:
    secret = kube.get("secret", "rempart-first-key", "rempart")
    return base64.b64decode(secret["data"]["key"]).decode()


@pytest.fixture(scope="session")
def base_url(kube, rempart) -> str:
    service = kube.get("service", "rempart", "rempart")
    return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}/v1"


@pytest.fixture(scope="session")
def client(base_url, api_key) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def namespace(kube, rempart):
    """A namespace with the claim "models" over the folder of model files, and everything in it removed afterwards."""
    folder = os.environ["REMPART_TEST_MODELS"]
    remove_namespace(kube)
    kube.run("create", "namespace", NAMESPACE)
    volume, claim = yaml.safe_load_all((ROOT / "examples" / "models-volume.yaml").read_text())
    volume["metadata"]["name"] = claim["spec"]["volumeName"] = NAMESPACE
    volume["spec"]["claimRef"]["namespace"] = claim["metadata"]["namespace"] = NAMESPACE
    volume["spec"]["hostPath"]["path"] = folder
    kube.apply(volume)
    kube.apply(claim)
    yield NAMESPACE
    remove_namespace(kube)


def remove_namespace(kube: Kube) -> None:
    kube.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s")
    kube.run("delete", "persistentvolume", NAMESPACE, "--ignore-not-found", "--timeout=60s")
