# SPDX-License-Identifier: Apache-2.0
"""A closed-loop load on an OpenAI-compatible server: every client sends its requests one after the other, each on a connection of
its own, and reads the streamed answer. It parses nothing but the boundaries of events, so that it takes little from the cores it
shares with the server."""
import asyncio
import dataclasses
import json
import re
import time

# A server that says nothing for this long has failed.
SILENCE_SECONDS = 300
COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclasses.dataclass
class Answer:
    sent: float
    tokens: list = dataclasses.field(default_factory=list)  # time of each event that carries text
    body: bytearray = dataclasses.field(default_factory=bytearray)

    @property
    def ttft(self) -> float:
        return self.tokens[0] - self.sent

    @property
    def gaps(self) -> list:
        return [later - earlier for earlier, later in zip(self.tokens, self.tokens[1:])]


class Exchange(asyncio.Protocol):
    """One POST and its answer."""

    def __init__(self, request: bytes, done: asyncio.Future):
        self.request, self.done = request, done
        self.answer = Answer(0)

    def connection_made(self, transport):
        self.answer.sent = time.perf_counter()
        transport.write(self.request)

    def data_received(self, data):
        now = time.perf_counter()
        self.answer.body += data
        events = data.count(b'"text":"') - data.count(b'"text":""')
        if events > 0:
            self.answer.tokens.extend([now] * events)

    def connection_lost(self, error):
        if not self.done.done():
            self.done.set_result(self.answer)


def request_bytes(port: int, body: dict, path: str = "/v1/completions") -> bytes:
    payload = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n").encode() + payload


def completion(model: str, prompt: str, max_tokens: int) -> dict:
    """The same words for every server: greedy, to the last token."""
    return {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}


async def ask(port: int, request: bytes) -> Answer:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    transport, _ = await loop.create_connection(lambda: Exchange(request, done), "127.0.0.1", port)
    try:
        return await asyncio.wait_for(done, SILENCE_SECONDS)
    finally:
        transport.close()


def checked(answer: Answer, wanted: int) -> Answer:
    """The answer, if it is the whole one that was asked for. A token that ends inside a character has no event of its own."""
    head, _, _ = bytes(answer.body[:64]).partition(b"\r\n")
    if b" 200" not in head or not answer.tokens:
        raise RuntimeError(f"the server answered {bytes(answer.body)[:600]!r}")
    counted = COMPLETION_TOKENS.findall(answer.body)
    if not counted or int(counted[-1]) != wanted:
        raise RuntimeError(f"the server counts {counted[-1:]} tokens instead of {wanted}")
    return answer


async def run_clients(port: int, bodies: list, requests_each: int) -> tuple:
    """`bodies`[client][i] of request i. Returns all answers and the seconds from the first request to the last token."""

    async def client(own: list) -> list:
        return [checked(await ask(port, request_bytes(port, body)), body["max_tokens"]) for body in own[:requests_each]]

    begin = time.perf_counter()
    answers = [answer for part in await asyncio.gather(*(client(own) for own in bodies)) for answer in part]
    return answers, max(answer.tokens[-1] for answer in answers) - begin


def first_token(port: int, body: dict, begin: float, deadline: float, is_alive) -> float:
    """Asks again every few milliseconds until the server answers; seconds from `begin` to the first token."""

    async def attempt() -> Answer:
        return await ask(port, request_bytes(port, body))

    while is_alive() and time.perf_counter() < deadline:
        try:
            answer = asyncio.run(attempt())
            if answer.tokens and b" 200 " in bytes(answer.body)[:20]:
                return answer.tokens[0] - begin
        except OSError:
            pass
        time.sleep(0.005)
    raise RuntimeError("the server ended, or did not answer in time")
