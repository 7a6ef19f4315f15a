# SPDX-License-Identifier: Apache-2.0
"""Groups of several processes under `rempart serve`: what breaks, who is named, and that no token is lost or changed."""
import concurrent.futures
import os
import re
import signal
import subprocess

import pytest

from conftest import Served, manifest, wait_until

REQUEST = {"model": "smollm2", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 60,
           "temperature": 0.8, "seed": 7, "extra_body": {"ignore_eos": True}}


def group_manifest(tensor: int, ranks_per_pod: int = 1) -> str:
    return manifest().replace("replicas: 1", f"parallelism: {{tensor: {tensor}, ranksPerPod: {ranks_per_pod}}}")


def ask(served: Served) -> str:
    return served.client().chat.completions.create(**REQUEST).choices[0].message.content


def pod(served: Served, index: int) -> int:
    suffix = "" if index == 0 else f"-{index}"
    found = subprocess.run(["pgrep", "-P", str(served.process.pid), "-f", f"worker-0{suffix}.json"],
                           capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


def times_ready(served: Served) -> int:
    return len(re.findall(r"smollm2-0: ready after", served.log.read_text()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    served = Served(tmp_path_factory.mktemp("one"), manifest(), "--dev")
    text = ask(served)
    assert served.stop() == 0
    return text


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("group"), group_manifest(3), "--dev")
    yield served
    assert served.stop() == 0


def test_three_ranks_say_what_one_says(group, undisturbed):
    assert ask(group) == undisturbed


def test_ranks_of_one_process_say_what_one_says(tmp_path, undisturbed):
    served = Served(tmp_path, group_manifest(3, 3), "--dev")
    assert ask(served) == undisturbed
    assert served.stop() == 0


@pytest.mark.parametrize("victims, how", [
    ([1], signal.SIGKILL), ([0], signal.SIGKILL), ([1, 2], signal.SIGKILL), ([2], signal.SIGSTOP),
])
def test_a_lost_member_changes_no_token_and_is_named(group, undisturbed, victims, how):
    before = times_ready(group)
    said = len(group.log.read_text())
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, group)
        wait_until("it runs", lambda: not answer.done(), 1)
        for victim in victims:
            os.kill(pod(group, victim), how)
        assert answer.result(timeout=60) == undisturbed
    wait_until("formed again", lambda: times_ready(group) > before, 60)
    blamed = re.findall(r"blamed_ranks=\"?([\d,]*)", group.log.read_text()[said:])
    assert any({int(rank) for rank in found.split(",") if rank} & set(victims) for found in blamed), blamed
    assert ask(group) == undisturbed
