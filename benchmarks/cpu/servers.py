# SPDX-License-Identifier: Apache-2.0
"""The servers that the benchmark compares, each started as its users start it: ours by `rempart serve`, llama.cpp by llama-server,
vLLM by `vllm serve`. One at a time has the machine."""
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

import load

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = pathlib.Path(os.environ.get("REMPART_BIN", ROOT / "build/release/bin"))
CACHE = pathlib.Path(os.environ.get("REMPART_CACHE", pathlib.Path.home() / ".cache/rempart"))
THREADS = 2

MANIFEST = """apiVersion: serving.rempart.dev/v1alpha1
kind: Model
metadata: {{name: bench}}
spec:
  source: {{uri: "file://{path}"}}
  servedNames: [bench]
  device: cpu
  replicas: 1
  engine: {{contextLength: {context}, maxSequences: {sequences}, threads: {threads}}}
  resources: {{requests: {{cpu: "{threads}"}}, limits: {{cpu: "{threads}"}}}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A process group that serves. `start` returns the seconds from exec to the first token of the first request that it answers."""

    name = ""
    start_seconds = 120

    def __init__(self, model: pathlib.Path, sequences: int, context: int):
        self.model, self.sequences, self.context = model, sequences, context
        self.port = free_port()
        self.folder = tempfile.TemporaryDirectory(prefix="rempart-bench-")
        self.log = pathlib.Path(self.folder.name) / "log"
        self.process = None

    def command(self) -> list:
        raise NotImplementedError

    def environment(self) -> dict:
        return dict(os.environ)

    def start(self) -> float:
        begin = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([str(word) for word in self.command()], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            env=self.environment(), start_new_session=True)
        try:
            return load.first_token(self.port, load.completion("bench", "The", 1), begin, begin + self.start_seconds, self.alive)
        except RuntimeError as error:
            self.stop()
            raise RuntimeError(f"{self.name}: {error}\n{self.log.read_text(errors='replace')[-2000:]}") from error

    def alive(self) -> bool:
        return self.process.poll() is None

    def pids(self) -> list:
        """Of the session that `start` began."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.getsid(int(entry.name)) == self.process.pid:
                    found.append(int(entry.name))
            except OSError:
                pass
        return found

    def memory(self) -> dict:
        """MiB over all processes: resident, and resident without the pages of files (which are shared and can be read again)."""
        rss = anonymous = 0
        for pid in self.pids():
            try:
                fields = {line.split(":")[0]: line.split()[1] for line in
                          pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]}
            except OSError:
                continue
            rss += int(fields["Rss"])
            anonymous += int(fields["Anonymous"])
        return {"rss_mib": round(rss / 1024), "anonymous_mib": round(anonymous / 1024)}

    @contextlib.contextmanager
    def standing_still(self):
        """Its processes get no CPU time meanwhile."""
        pids = self.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process = None

    def __enter__(self):
        self.exec_to_first_token = self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        self.folder.cleanup()


class Rempart(Server):
    name = "rempart"

    def __init__(self, *args, tier: str = "", cache: pathlib.Path | None = None):
        super().__init__(*args)
        self.tier, self.cache = tier, cache

    def command(self) -> list:
        manifest = pathlib.Path(self.folder.name) / "model.yaml"
        manifest.write_text(MANIFEST.format(path=self.model, context=self.context, sequences=self.sequences, threads=THREADS))
        return [BINARIES / "rempart", "serve", "-f", manifest, "--dev", "--port", self.port,
                *(["--kernel-tier", self.tier] if self.tier else []), *(["--cache", self.cache] if self.cache else [])]


class LlamaCpp(Server):
    name = "llama.cpp"
    binary = "LLAMA_SERVER"

    def command(self) -> list:
        return [os.environ[self.binary], "-m", self.model, "-t", THREADS, "-np", self.sequences, "-c", self.sequences * self.context,
                "--port", self.port, "--host", "127.0.0.1", "--alias", "bench"]


class LlamaCppWithoutAvx512(LlamaCpp):
    binary = "LLAMA_SERVER_AVX2"


class Vllm(Server):
    name = "vllm"
    start_seconds = 600

    def command(self) -> list:
        return [CACHE / "vllm/env/bin/vllm", "serve", self.model, "--port", self.port, "--host", "127.0.0.1", "--served-model-name", "bench",
                "--dtype", "bfloat16", "--max-model-len", self.context, "--max-num-seqs", self.sequences]

    def environment(self) -> dict:
        return {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1"}


class VllmWithoutAvx512(Vllm):
    """As it is on a processor that has AVX2 alone: its own choice of kernels, PyTorch's, oneDNN's and MKL's."""

    def environment(self) -> dict:
        return {**super().environment(), "PYTHONPATH": pathlib.Path(__file__).parent / "without_avx512", "ATEN_CPU_CAPABILITY": "avx2",
                "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
