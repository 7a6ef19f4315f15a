# SPDX-License-Identifier: Apache-2.0
"""The chart as Helm renders it, before anything runs."""
import base64
import hashlib
import subprocess

import pytest
import yaml
from conftest import CHART


def helm(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["helm", *words], capture_output=True, text=True, check=False)


def rendered(*sets: str) -> list[dict]:
    words = [word for one in sets for word in ("--set", one)]
    done = helm("template", "rempart", str(CHART), "--namespace", "rempart", *words)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def named(documents: list[dict], kind: str, name: str) -> dict:
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)


@pytest.fixture(scope="module")
def documents() -> list[dict]:
    return rendered()


def test_lint_finds_nothing():
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("values, words", [
    ("modles.allowNodePaths=true", "modles"),
    ("models.allowNodePaths=maybe", "allowNodePaths"),
    ("router.replicas=0", "replicas"),
    ("images.worker=no-tag", "worker"),
    ("images.pullPolicy=Sometimes", "pullPolicy"),
    ("gpu.runtimeClassName=NVIDIA_", "runtimeClassName"),
])
def test_a_wrong_value_is_refused_by_name(values, words):
    done = helm("template", "rempart", str(CHART), "--set", values)
    assert done.returncode != 0
    assert words in done.stderr


def test_the_runtime_class_of_gpus_is_told_where_it_is_named(documents):
    def told(found: list[dict]) -> list[str]:
        operator = named(found, "Deployment", "rempart-operator")
        return [word for word in operator["spec"]["template"]["spec"]["containers"][0]["args"] if "runtime-class" in word]
    assert told(documents) == []
    assert told(rendered("gpu.runtimeClassName=nvidia")) == ["--gpu-runtime-class=nvidia"]


def test_every_pod_meets_the_restricted_profile(documents):
    deployments = [d for d in documents if d["kind"] == "Deployment"]
    assert {d["metadata"]["name"] for d in deployments} == {"rempart-operator", "rempart-router"}
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_only_the_operator_holds_a_token(documents):
    for name, wanted in (("rempart-operator", True), ("rempart-router", False)):
        pod = named(documents, "Deployment", name)["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is wanted
    subjects = {s["name"] for d in documents if d["kind"].endswith("RoleBinding") for s in d["subjects"]}
    assert subjects == {"rempart-operator"}


def test_the_operator_reads_no_secret_but_its_own_copy(documents):
    role = named(documents, "ClusterRole", "rempart-operator")
    for rule in role["rules"]:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        if "secrets" in rule["resources"]:
            assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["rempart-worker-tls"]


def test_the_operator_may_change_only_what_it_owns(documents):
    verbs = {resource: set(rule["verbs"]) for rule in named(documents, "ClusterRole", "rempart-operator")["rules"]
             for resource in rule["resources"]}
    reads = {"get", "list", "watch"}
    assert verbs["nodes"] == verbs["models"] == verbs["persistentvolumeclaims"] == reads
    assert verbs["pods"] == reads | {"patch", "delete"}, "places gated pods and removes lost ones; makes none"
    for owned in ("statefulsets", "services", "configmaps", "poddisruptionbudgets", "networkpolicies"):
        assert verbs[owned] == reads | {"create", "patch", "delete"}


def test_the_router_gets_digests_and_never_the_key(documents):
    digests = base64.b64decode(named(documents, "Secret", "rempart-api-keys")["data"]["keys"]).decode()
    key = base64.b64decode(named(documents, "Secret", "rempart-first-key")["data"]["key"])
    assert len(key) >= 40
    assert digests == f"first:{hashlib.sha256(key).hexdigest()}\n"
    volumes = named(documents, "Deployment", "rempart-router")["spec"]["template"]["spec"]["volumes"]
    mounted = {v["secret"]["secretName"] for v in volumes if "secret" in v}
    assert mounted == {"rempart-router-tls", "rempart-api-keys"}


def test_an_existing_secret_replaces_the_generated_key():
    documents = rendered("apiKeys.existingSecret=ours")
    assert not [d for d in documents if d["kind"] == "Secret" and "key" in d["metadata"]["name"]]
    volumes = named(documents, "Deployment", "rempart-router")["spec"]["template"]["spec"]["volumes"]
    assert "ours" in {v["secret"]["secretName"] for v in volumes if "secret" in v}


@pytest.mark.parametrize("role", ["operator", "router", "worker"])
def test_certificates_chain_to_the_authority_and_name_their_role(documents, role, tmp_path):
    data = named(documents, "Secret", f"rempart-{role}-tls")["data"]
    for name in ("ca.crt", "tls.crt"):
        (tmp_path / name).write_bytes(base64.b64decode(data[name]))
    done = subprocess.run(["openssl", "verify", "-CAfile", "ca.crt", "-verify_hostname", f"rempart-{role}", "tls.crt"],
                          cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_pod_mounts_the_authority(documents):
    for deployment in (d for d in documents if d["kind"] == "Deployment"):
        for volume in deployment["spec"]["template"]["spec"]["volumes"]:
            assert volume.get("secret", {}).get("secretName") != "rempart-authority"


def test_policies_close_what_no_flow_needs(documents):
    deny = named(documents, "NetworkPolicy", "rempart-default-deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in deny and "egress" not in deny
    ports = {d["metadata"]["name"]: sorted(p["port"] for rule in d["spec"].get("ingress", []) for p in rule["ports"])
             for d in documents if d["kind"] == "NetworkPolicy"}
    assert ports == {"rempart-default-deny": [], "rempart-operator": [7080], "rempart-router": [8080],
                     "rempart-worker": [7070]}
    assert not [d for d in rendered("networkPolicies.enabled=false") if d["kind"] == "NetworkPolicy"]
