# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests share: `rempart serve` over a real model, and its official client."""
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "build/dev/bin/rempart"
MODELS = pathlib.Path(os.environ["REMPART_TEST_MODELS"])
MANIFEST = """
apiVersion: serving.rempart.dev/v1alpha1
kind: Model
metadata:
  name: smollm2
spec:
  source: {{uri: "file://{path}"}}
  servedNames: [smollm2, default]
  replicas: {replicas}
  # Exact, because the words must not depend on the processor.
  engine: {{contextLength: 512, maxSequences: 8, arithmetic: exact}}
"""


def manifest(path: pathlib.Path = MODELS / "smollm2-135m-instruct-q4_1.gguf", replicas: int = 1) -> str:
    return MANIFEST.format(path=path, replicas=replicas)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what: str, condition, seconds: float = 30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}"
        time.sleep(0.05)
    return value


class Served:
    """One running `rempart serve`."""

    def __init__(self, folder: pathlib.Path, text: str, *flags: str):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "model.yaml").write_text(text)
        self.log = folder / "serve.log"
        # A folder of its own, so that what is left behind is seen.
        self.folder = folder / "run"
        self.folder.mkdir()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [BINARY, "serve", "-f", folder / "model.yaml", "--port", str(self.port), *flags],
                stderr=log, stdout=log, env={**os.environ, "XDG_RUNTIME_DIR": str(self.folder)})
        wait_until("ready", lambda: self.said("rempart: ready after") or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def said(self, words: str) -> bool:
        return words in self.log.read_text()

    @property
    def key(self) -> str:
        found = re.search(r"rmp-[0-9a-f]{48}", self.log.read_text())
        return found.group() if found else "none"

    def client(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=60)

    def children(self, name: str) -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", name], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout=30)


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    server = Served(tmp_path_factory.mktemp("served"), manifest())
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def client(served):
    return served.client()
