# SPDX-License-Identifier: Apache-2.0
"""A folder in Hugging Face layout, served like a GGUF file."""
import json
import subprocess

import pytest

import hf_folder
from conftest import BINARY, MODELS, Served, free_port, manifest

GGUF = MODELS / "smollm2-135m-instruct-q4_1.gguf"
QUESTIONS = ["What is the capital of Italy? Answer in one word.", "Écris une phrase sur 3 châteaux forts.", "1234 + 5678 = ?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / "smollm2"
    hf_folder.write(GGUF, path)
    return path


def answers(client) -> list[tuple[str, str, int, int]]:
    found = []
    for question in QUESTIONS:
        answer = client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": question}],
                                                max_tokens=24, temperature=0)
        found.append((answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.prompt_tokens,
                      answer.usage.completion_tokens))
    return found


def test_a_folder_answers_like_the_gguf_file_of_the_same_weights(client, folder, tmp_path):
    served = Served(tmp_path, manifest(folder), "--dev")
    try:
        assert answers(served.client()) == answers(client)
    finally:
        assert served.stop() == 0


def refused(folder, tmp_path) -> str:
    file = tmp_path / "model.yaml"
    file.write_text(manifest(folder))
    ended = subprocess.run([BINARY, "serve", "-f", file, "--dev", "--port", str(free_port())], capture_output=True, text=True,
                           timeout=60, check=False)
    assert ended.returncode != 0
    return ended.stdout + ended.stderr


def test_a_folder_without_its_second_shard_is_refused_by_name(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        if "00002-of" not in file.name:
            (broken / file.name).symlink_to(file)
    assert "model-00002-of-00002.safetensors" in refused(broken, tmp_path)


def test_a_folder_of_an_unknown_family_is_refused_with_those_that_are_known(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(config))
    said = refused(other, tmp_path)
    assert "mamba" in said.lower() and "llama" in said.lower()
