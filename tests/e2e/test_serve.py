# SPDX-License-Identifier: Apache-2.0
"""`rempart serve` as a process: what it starts, what it says, what it leaves behind."""
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import urllib.request

import openai
import pytest

from conftest import BINARY, MODELS, Served, free_port, manifest, wait_until

QUESTION = [{"role": "user", "content": "Hello"}]


def run(*words, stdin: str = "", seconds: float = 60) -> subprocess.CompletedProcess:
    return subprocess.run([BINARY, *words], input=stdin, capture_output=True, text=True, timeout=seconds, check=False)


def test_a_worker_that_dies_is_started_again(tmp_path):
    served = Served(tmp_path, manifest(), "--dev")
    client = served.client()
    before = served.children("rempart-worker")
    assert len(before) == 1
    os.kill(before[0], signal.SIGKILL)
    wait_until("said so", lambda: served.said("ended with signal 9"))
    # Held by the router until the worker is back.
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=2)
    assert answer.usage.completion_tokens == 2
    assert served.children("rempart-worker") != before
    assert served.stop() == 0


def test_a_file_that_is_cut_while_it_is_served_is_named_and_taken_up_again(tmp_path):
    whole = MODELS / "smollm2-135m-instruct-q4_1.gguf"
    file = tmp_path / "model.gguf"
    shutil.copyfile(whole, file)
    served = Served(tmp_path, manifest(file), "--dev")
    client = served.client()
    os.truncate(file, 1 << 20)
    named = f"{file}: cannot be read any more where it is mapped"
    wait_until("the file named", lambda: ask_in_vain(client) and served.said(named))
    wait_until("said so", lambda: served.said("ended with exit status 3"))
    shutil.copyfile(whole, tmp_path / "new.gguf")
    os.rename(tmp_path / "new.gguf", file)
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=2)
    assert answer.usage.completion_tokens == 2
    assert served.stop() == 0


def ask_in_vain(client) -> bool:
    with contextlib.suppress(openai.APIError):
        client.with_options(timeout=2).chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=2)
    return True


def test_two_replicas_outlive_one_without_a_failed_request(tmp_path):
    served = Served(tmp_path, manifest(replicas=2), "--dev")
    client = served.client()
    workers = served.children("rempart-worker")
    assert len(workers) == 2
    for victim in workers:
        stream = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=200, temperature=0,
                                                stream=True, extra_body={"ignore_eos": True})
        chunks = [next(stream)]
        os.kill(victim, signal.SIGKILL)
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        wait_until("two again", lambda: len(served.children("rempart-worker")) == 2)
        wait_until("ready again", lambda: served.log.read_text().count(": ready after") >= 3 + workers.index(victim))
    assert served.stop() == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing(tmp_path, how):
    served = Served(tmp_path, manifest(), "--dev")
    children = served.children("rempart-")
    assert len(children) == 2
    assert served.stop(how) == 0
    assert not [pid for pid in children if pathlib.Path(f"/proc/{pid}").exists()]
    assert not list(served.folder.iterdir())
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", served.port), timeout=2)


def test_children_die_with_a_killed_parent(tmp_path):
    served = Served(tmp_path, manifest(), "--dev")
    children = served.children("rempart-")
    served.process.kill()
    served.process.wait()
    wait_until("children gone", lambda: not [pid for pid in children if alive(pid)])


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_key_file_of_ones_own(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("team:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n")  # "abc"
    served = Served(tmp_path, manifest(), "--api-keys", str(keys))
    assert served.client(key="abc").models.list().data
    with pytest.raises(openai.AuthenticationError):
        served.client(key="abd").models.list()
    assert served.stop() == 0


def test_model_files_that_cannot_be_served(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((MODELS / "smollm2-135m-instruct-q4_1.gguf").read_bytes()[:1_000_000])
    for path in (tmp_path / "missing.gguf", broken):
        done = run("serve", "-f", "-", "--dev", "--port", str(free_port()), stdin=manifest(path))
        assert done.returncode == 3, done.stderr
        assert path.name in done.stderr


def test_a_gpu_that_is_not_there_ends_it_at_once():
    text = manifest().replace("spec:", "spec:\n  device: gpu", 1).replace(", arithmetic: exact", "")
    done = run("serve", "-f", "-", "--dev", "--port", str(free_port()), stdin=text)
    assert done.returncode == 6, done.stderr
    assert "GPU 0 cannot be used" in done.stderr and "set device: cpu" in done.stderr
    assert "starting it again" not in done.stderr


def test_a_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("serve", "-f", "-", "--dev", "--port", str(taken.getsockname()[1]), stdin=manifest())
    assert done.returncode == 5
    assert "in use" in done.stderr


@pytest.mark.parametrize("change, field", [
    (("contextLength", "contextLenght"), "spec.engine.contextLenght: no such field"),
    (("replicas: 1", "replicas: -1"), "spec.replicas: -1 must be from 0 to 1024"),
    (("replicas: 1", "replicas: one"), "spec.replicas"),
    (("kind: Model", "kind: Modle"), "kind"),
    (("file://", "ftp://"), "spec.source.uri"),
    (("file://", "pvc://"), "use file:///path"),
    (("name: smollm2", "name: Smol LM"), "metadata.name"),
    (("maxSequences: 8", "maxStepMilliseconds: -1"), "spec.engine.maxStepMilliseconds"),
    (("maxSequences: 8", "kvCacheMib: 0"), "spec.engine.kvCacheMib: 0 must be from 1 to 16777216"),
    (("maxSequences: 8", "maxSequences: 40, maxStepTokens: 39"), "spec.engine.maxStepTokens: 39 is less than maxSequences, 40"),
    (("maxSequences: 8", "maxStepTokens: 65536"), "spec.engine.maxStepTokens: 65536 must be from 16 to 65535"),
    (("spec:", "spec: ["), "not YAML"),
])
def test_wrong_manifests(change, field):
    done = run("serve", "-f", "-", "--dev", stdin=manifest().replace(*change))
    assert done.returncode == 2
    assert field in done.stderr


def test_wrong_flags():
    assert run("serve").returncode == 2
    assert run("serve", "-f", "/nowhere.yaml").returncode == 2
    assert run("serve", "-f", "-", "--port", "0").returncode == 2
    none_left = run("serve", "-f", "-", "--dev", "--metrics", "65535", stdin=manifest())
    assert none_left.returncode == 2 and "--metrics 65535: there is no port for default/smollm2-0" in none_left.stderr
    same = run("serve", "-f", "-", "--dev", "--metrics", "18000", "--port", "18000", stdin=manifest())
    assert same.returncode == 2 and "which is that of --port" in same.stderr
    assert run("dance").returncode == 2
    everywhere = run("serve", "-f", "-", "--dev", "--host", "0.0.0.0", "--port", str(free_port()), stdin=manifest())
    assert everywhere.returncode == 2 and "--dev serves without API keys, and --host 0.0.0.0 leaves this machine" in everywhere.stderr
    assert "loading" not in everywhere.stderr
    no_keys = run("serve", "-f", "-", "--api-keys", "/nowhere", "--port", str(free_port()), stdin=manifest())
    assert no_keys.returncode == 2 and "--api-keys /nowhere: No such file" in no_keys.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_what_waits_for_a_manifest_can_be_ended(how):
    # What a shell starts in the background inherits that SIGINT is ignored: these tests, then, and what they start.
    waiting = subprocess.Popen([BINARY, "serve", "-f", "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(how, signal.SIG_DFL))
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=0.5)
        waiting.send_signal(how)
        assert waiting.wait(timeout=10) == -how
    finally:
        waiting.kill()


@pytest.mark.parametrize("folder, why", [
    ("/proc/foo", "cannot be made"), ("/dev/null", "it must be a folder"), ("/dev/null/foo", "cannot be made")])
def test_a_cache_folder_that_was_asked_for_and_cannot_be_used_is_refused(folder, why):
    done = run("serve", "-f", "-", "--dev", "--port", str(free_port()), "--cache", folder, stdin=manifest())
    assert done.returncode == 2
    assert f"--cache: the repack cache {folder}" in done.stderr and why in done.stderr


def test_kernels_that_this_processor_lacks_are_refused_with_those_it_has():
    for command in (("serve", "-f", "-", "--dev"), ("doctor",)):
        done = run(*command, "--kernel-tier", "sse9", stdin=manifest())
        assert done.returncode == 2
        assert '--kernel-tier "sse9" is not one that this CPU has: reference baseline' in done.stderr


def free_pair() -> int:
    """A port that is free, as the one after it."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + 1))
            return port


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return answer.read().decode()


def test_a_start_is_broken_down_and_measured(tmp_path):
    port = free_pair()
    more_threads = manifest().replace("arithmetic: exact", "threads: 1024")
    served = Served(tmp_path, more_threads, "--dev", "--kernel-tier", "baseline", "--metrics", str(port))
    try:
        said = served.log.read_text()
        assert re.search(r"smollm2-0: ready after .* \(open \d+ ms, .*total \d+ ms\)", said), said
        cpus = int(re.search(r"engine.threads is 1024, but this process may use (\d+) CPUs", said).group(1))
        assert cpus <= len(os.sched_getaffinity(0))
        assert f"metrics of the router: http://127.0.0.1:{port}/metrics" in said
        ask = {"model": "smollm2", "prompt": "one " * 100, "max_tokens": 1}
        for _ in range(2):
            served.client().completions.create(**ask)
        assert "rempart_router_" in metrics(port)
        text = metrics(port + 1)
        assert 'kernels="baseline"' in text
        assert 'rempart_worker_kernel_info{model="default/smollm2",op="matmul_fast",when="quantised weights, 1 to 3 tokens"' in text
        assert f'rempart_worker_threads{{model="default/smollm2"}} {cpus}\n' in text
        assert 'rempart_worker_prefix_cache_hit_tokens_total{model="default/smollm2"} 96\n' in text
    finally:
        assert served.stop() == 0


def resident_bytes_beside(names: tuple[str, ...], pid: int) -> int:
    """Of one process, without the pages of files whose paths end so."""
    total, counts = 0, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = not line.endswith(names)
        elif line.startswith("Rss:") and counts:
            total += int(line.split()[1]) * 1024
    return total


def keep_repacked_weights(folder: pathlib.Path, text: str, cache: pathlib.Path):
    """Starts once, so that the next start maps what this one has repacked."""
    folder.mkdir()
    served = Served(folder, text, "--dev", "--cache", str(cache))
    try:
        wait_until("repacked weights kept", lambda: list(cache.glob("*.repacked")))
    finally:
        assert served.stop() == 0


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
@pytest.mark.parametrize("file", ["smollm2-135m-instruct-q4_1.gguf", "gemma3-270m-q4_k_m.gguf"])
def test_a_worker_takes_little_beside_weights_and_cache(tmp_path, file, arithmetic):
    # In exact arithmetic all weights are pages of the file; in the default one, of the repack cache's too.
    text = manifest(MODELS / file).replace("arithmetic: exact", f"arithmetic: {arithmetic}")
    cache = tmp_path / "cache"
    if arithmetic == "fast":
        keep_repacked_weights(tmp_path / "first", text, cache)
    served = Served(tmp_path, text, "--dev", "--cache", str(cache))
    try:
        served.client().completions.create(model="smollm2", prompt="one", max_tokens=8)
        assert served.said(", map ") == (arithmetic == "fast"), served.log.read_text()
        workers = served.children("rempart-worker")
        assert len(workers) == 1
        assert resident_bytes_beside((file, ".repacked"), workers[0]) < 150 << 20
    finally:
        assert served.stop() == 0


def test_more_sequences_than_a_step_has_tokens_by_default(tmp_path):
    served = Served(tmp_path, manifest().replace("maxSequences: 8", "maxSequences: 513"), "--dev")
    try:
        answer = served.client().chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=2)
        assert answer.usage.completion_tokens == 2
    finally:
        assert served.stop() == 0


def test_plan_doctor_version_help():
    assert "smollm2-135m" in run("plan", "-f", "-", stdin=manifest()).stdout
    doctor = run("doctor", "--kernel-tier", "baseline").stdout
    assert "processor" in doctor
    assert "GPUs: " in doctor
    assert re.search(r"baseline:\n +matmul_fast +quantised weights, 1 to 3 tokens +codes from memory to registers", doctor)
    assert run("version").stdout.startswith("rempart ")
    usage = run("help").stdout
    assert "serve" in usage
    for words in ((), ("--help",), ("-h",), ("serve", "--help"), ("drill", "kill-rank", "-h"), ("perplexity", "--help")):
        asked = run(*words)
        assert (asked.returncode, asked.stdout, asked.stderr) == (0, usage, "")
