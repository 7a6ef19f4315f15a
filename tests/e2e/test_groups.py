# SPDX-License-Identifier: Apache-2.0
"""Groups of several processes under `rempart serve`: what breaks, who is named, and that no token is lost or changed."""
import concurrent.futures
import os
import re
import signal
import subprocess

import pytest

from conftest import BINARY, Served, free_port, manifest, wait_until

REQUEST = {"model": "smollm2", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 60,
           "temperature": 0.8, "seed": 7, "extra_body": {"ignore_eos": True}}


def group_manifest(tensor: int, ranks_per_pod: int = 1, pipeline: int = 1) -> str:
    return manifest().replace("replicas: 1",
                              f"parallelism: {{tensor: {tensor}, ranksPerPod: {ranks_per_pod}, pipeline: {pipeline}}}")


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


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("pipeline"), group_manifest(1, 1, 3), "--dev")
    yield served
    assert served.stop() == 0


# Long enough to be cut into micro-batches, in one step and over several.
LONG = {**REQUEST, "messages": [{"role": "user", "content": "Count the sheep: " + "one sheep, " * 100}], "max_tokens": 20}


def test_stages_say_what_one_rank_says(pipeline, undisturbed, tmp_path):
    assert ask(pipeline) == undisturbed
    alone = Served(tmp_path, manifest(), "--dev")
    answers = []
    for served in (alone, pipeline):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            requests = [{**LONG, "seed": seed} for seed in range(4)]
            texts = pool.map(lambda each, to=served: to.client().chat.completions.create(**each).choices[0].message.content, requests)
            answers.append(list(texts))
    assert alone.stop() == 0
    assert answers[0] == answers[1]


def test_stages_of_three_ranks_say_what_one_rank_says(tmp_path, undisturbed):
    served = Served(tmp_path, group_manifest(3, 3, 2), "--dev")
    assert ask(served) == undisturbed
    assert served.stop() == 0


@pytest.mark.parametrize("victim, how", [(1, signal.SIGKILL), (2, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_stage_changes_no_token_and_is_named(pipeline, undisturbed, victim, how):
    lose_and_ask(pipeline, undisturbed, [victim], how)


def test_more_stages_than_layers_are_refused_with_the_limit(tmp_path):
    (tmp_path / "model.yaml").write_text(group_manifest(1, 1, 31))
    done = subprocess.run([BINARY, "serve", "-f", tmp_path / "model.yaml", "--port", str(free_port()), "--dev"], capture_output=True,
                          text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "parallelism.pipeline is 31, but the model has 30 layers: set at most 30" in done.stderr


@pytest.mark.parametrize("victims, how", [
    ([1], signal.SIGKILL), ([0], signal.SIGKILL), ([1, 2], signal.SIGKILL), ([2], signal.SIGSTOP),
])
def test_a_lost_member_changes_no_token_and_is_named(group, undisturbed, victims, how):
    lose_and_ask(group, undisturbed, victims, how)


def lose_and_ask(group, undisturbed, victims, how):
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
