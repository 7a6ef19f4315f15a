# SPDX-License-Identifier: Apache-2.0
"""The official client against a real model: what an application sees."""
import json
import socket
import urllib.error
import urllib.request

import openai
import pytest

from conftest import wait_until

QUESTION = [{"role": "user", "content": "What is the capital of Italy? Answer in one word."}]


def test_chat(client):
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=16, temperature=0)
    assert "Rome" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_streamed_chat_equals_the_whole_one(client):
    ask = {"model": "smollm2", "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert sum(len(chunk.choices) > 0 for chunk in chunks) > 3


def test_completions(client):
    answer = client.completions.create(model="default", prompt=["One, two,", "Red, green,"], max_tokens=4, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens == 8


def test_a_seed_repeats_itself(client):
    def draw(seed: int) -> str:
        return client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=24, temperature=1.5,
                                              seed=seed).choices[0].message.content
    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_stop_and_n(client):
    answer = client.completions.create(model="smollm2", prompt="One, two, three, four,", max_tokens=16, temperature=0,
                                       stop=[","], n=2)
    assert len(answer.choices) == 2
    assert all("," not in choice.text and choice.finish_reason == "stop" for choice in answer.choices)


def test_logprobs(client):
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=3, temperature=0,
                                            logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2
        assert token.top_logprobs[0].token == token.token  # greedy


def test_models(client):
    assert {model.id for model in client.models.list()} == {"smollm2", "default"}
    assert client.models.retrieve("smollm2").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_errors_have_the_clients_types(served, client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-5", messages=QUESTION)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as field:
        client.chat.completions.create(model="smollm2", messages=QUESTION, extra_body={"temprature": 1})
    assert "temprature" in field.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "word " * 2000}])
    assert long.value.code == "context_length_exceeded" and "512" in long.value.message
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="smollm2", messages=QUESTION, temperature=-1)
    with pytest.raises(openai.AuthenticationError):
        served.client(key="rmp-wrong").models.list()


def post(served, body: bytes) -> tuple[int, dict]:
    request = urllib.request.Request(f"{served.url}/v1/chat/completions", data=body,
                                     headers={"Authorization": f"Bearer {served.key}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_bodies_that_are_not_requests(served):
    assert post(served, b'{"model": "smollm2", "messages": [{"role": "user", "content": "\xff\xfe"}]}')[0] == 400
    assert post(served, b"[" * 100_000)[0] == 400
    status, answer = post(served, b" " * (9 << 20))
    assert status == 413 and answer["error"]["code"] == "request_too_large"


def test_a_client_that_leaves_frees_its_place(served, client):
    body = json.dumps({"model": "smollm2", "messages": QUESTION, "stream": True, "max_tokens": 400,
                       "ignore_eos": True}).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {served.key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode()
    # More than the engine's eight places: all but the last leave at once.
    for _ in range(24):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as leaver:
            leaver.sendall(head + body)
            assert b"200 OK" in leaver.recv(4096)
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=2)
    assert answer.usage.completion_tokens == 2
    assert wait_until("alive", lambda: client.models.list().data)
