# SPDX-License-Identifier: Apache-2.0
"""A wrong manifest is refused at apply, or ends in a condition whose message says what to do."""
import os
import pathlib
import struct

import pytest
from conftest import condition, eventually, model


def gguf(architecture: str) -> bytes:
    """A valid GGUF file with no tensor, of the architecture given."""
    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()
    string_type = 8
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("general.architecture") + struct.pack("<I", string_type) + text(architecture)


@pytest.fixture(scope="module")
def files(namespace):
    folder = pathlib.Path(os.environ["REMPART_TEST_MODELS"])
    whole = (folder / "smollm2-135m-instruct-q4_1.gguf").read_bytes()
    broken = {"test-truncated.gguf": whole[: len(whole) // 2], "test-hostile.gguf": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
              "test-mamba.gguf": gguf("mamba")}
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    yield
    for name in broken:
        (folder / name).unlink()


# What the API server refuses, by the schema alone: name, changed spec, words of the answer.
REFUSED = [
    ("unknown-field", {"replcias": 2}, "replcias"),
    ("negative-size", {"replicas": -1}, "spec.replicas"),
    ("wrong-device", {"device": "tpu"}, "spec.device"),
    ("wrong-scheme", {"source": {"uri": "http://example.org/model.gguf"}}, "spec.source.uri"),
    ("no-source", {"source": None}, "spec.source"),
    ("uneven-parallelism", {"parallelism": {"tensor": 3, "ranksPerPod": 2}}, "tensor must be a multiple of"),
    ("context-of-nothing", {"engine": {"contextLength": 1}}, "spec.engine.contextLength"),
    ("steps-too-short", {"engine": {"maxSequences": 64, "maxStepTokens": 63}}, "engine.maxStepTokens must be at least engine.maxSequences"),
    ("steps-too-short-for-the-default", {"engine": {"maxStepTokens": 31}}, "engine.maxStepTokens must be at least engine.maxSequences"),
    ("autoscaling-upside-down", {"autoscaling": {"min": 3, "max": 2}}, "min must not exceed"),
    ("bad-digest", {"source": {"uri": "pvc://models/a.gguf", "digest": "sha256:short"}}, "spec.source.digest"),
]


@pytest.mark.parametrize("name, change, words", REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_at_apply(kube, namespace, name, change, words):
    done = kube.apply(model(name, **change), check=False)
    assert done.returncode != 0, "it was accepted"
    assert words in done.stderr
    assert kube.get("model", name) is None


# What only the operator or the worker can know: name, changed spec, words of the message that say what and the fix.
CONDITIONS = [
    ("missing-claim", {"source": {"uri": "pvc://nowhere/a.gguf"}}, ["nowhere"]),
    ("missing-file", {"source": {"uri": "pvc://models/not-here.gguf"}}, ["not-here.gguf"]),
    ("node-path", {"source": {"uri": "file:///etc/passwd"}}, ["allowNodePaths"]),
    ("later-source", {"source": {"uri": "oci://registry.intra/models/a:1"}}, ["oci", "pvc://"]),
    ("corrupt-file", {"source": {"uri": "pvc://models/test-truncated.gguf"}}, ["test-truncated.gguf"]),
    ("hostile-file", {"source": {"uri": "pvc://models/test-hostile.gguf"}}, ["test-hostile.gguf"]),
    ("wrong-architecture", {"source": {"uri": "pvc://models/test-mamba.gguf"}}, ["mamba"]),
    ("too-little-memory", {"engine": {"contextLength": 8192, "maxSequences": 1},
                           "resources": {"requests": {"memory": "192Mi"}, "limits": {"memory": "192Mi"}}}, ["MiB"]),
    ("context-beyond-model", {"engine": {"contextLength": 100000}}, ["8192"]),
    ("autoscaling-unsupported", {"autoscaling": {"min": 0, "max": 2}}, ["autoscaling", "replicas"]),
    ("no-such-gpu", {"device": "gpu"}, ["gpu"]),
]


@pytest.mark.parametrize("name, change, words", CONDITIONS, ids=[row[0] for row in CONDITIONS])
def test_ends_in_a_message_that_says_the_fix(kube, files, name, change, words):
    kube.apply(model(name, **change))
    try:
        def complaint():
            now = kube.get("model", name)
            ready = condition(now, "Ready")
            told = now.get("status", {}).get("message") or ""
            return ready.get("status") == "False" and all(word.lower() in told.lower() for word in words) and told
        try:
            message = eventually("a message", complaint, 60)
        except AssertionError:
            pytest.fail(f"status: {kube.get('model', name).get('status')}")
        assert len(message) < 500
    finally:
        kube.delete("model", name)


def test_a_name_that_another_model_serves_is_not_taken(kube, files):
    kube.apply(model("first", servedNames=["shared"], replicas=0))
    eventually("the first is accepted", lambda: condition(kube.get("model", "first"), "Accepted").get("status") == "True", 30)
    kube.apply(model("second", servedNames=["shared"]))
    try:
        def clash():
            accepted = condition(kube.get("model", "second"), "Accepted")
            return accepted.get("status") == "False" and accepted["message"]
        message = eventually("the second is refused", clash, 30)
        assert "shared" in message and "first" in message
        assert condition(kube.get("model", "first"), "Accepted")["status"] == "True"
    finally:
        kube.delete("model", "second")
        kube.delete("model", "first")
