# SPDX-License-Identifier: Apache-2.0
"""Clients of the official OpenAI SDK that ask the same questions again and again, and know what the answers must be."""
import dataclasses
import threading
import time

import openai

QUESTIONS = [
    "What is the capital of France?", "Name three colours.", "Why is the sky blue?", "Write a line about the sea.",
    "What is two and two?", "Describe a cat in one sentence.",
]
MAX_TOKENS = 48
# How often a request is sent again whose connection broke, where a fault breaks connections.
MAX_RESENT = 2


def ask(client: openai.OpenAI, served: str, number: int, on_chunk=lambda: None, chat: bool = True) -> str:
    """The whole answer to question `number`, with its own seed and a temperature: replays must continue the same stream. A model
    without a chat template completes the question instead."""
    how = {"model": served, "max_tokens": MAX_TOKENS, "seed": 1000 + number, "temperature": 0.7, "stream": True}
    if chat:
        chunks = client.chat.completions.create(messages=[{"role": "user", "content": QUESTIONS[number]}], **how)
    else:
        chunks = client.completions.create(prompt=QUESTIONS[number], **how)
    text, finish = "", None
    for chunk in chunks:
        on_chunk()
        for choice in chunk.choices:
            text += (choice.delta.content if chat else choice.text) or ""
            finish = choice.finish_reason or finish
    if finish not in ("stop", "length"):
        raise ConnectionError(f"ended without a finish reason: {finish}")
    return text


@dataclasses.dataclass
class Outcome:
    completed: int = 0
    resent: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    chunk_times: list[float] = dataclasses.field(default_factory=list)

    def longest_gap(self, since: float) -> float:
        """Seconds during which no client got a token, from `since` on."""
        times = [since] + sorted(t for t in list(self.chunk_times) if t > since)
        return max((b - a for a, b in zip(times, times[1:])), default=float("inf"))


class Traffic:
    """Streams answers on `clients` threads until told to stop. Whatever a client program would see counts; with `resends`, a
    request whose connection broke is lost only when it was sent again in vain."""

    def __init__(self, client: openai.OpenAI, served: str, expected: list[str], clients: int = 3, resends: bool = False,
                 chat: bool = True):
        self.client, self.served, self.expected = client, served, expected
        self.resends = MAX_RESENT if resends else 0
        self.chat = chat
        self.outcome, self.mu, self.stopping = Outcome(), threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(clients)]

    def _chunk(self):
        with self.mu:
            self.outcome.chunk_times.append(time.monotonic())

    def _answer(self, number: int) -> str:
        for again in range(self.resends + 1):
            try:
                return ask(self.client, self.served, number, self._chunk, self.chat)
            except openai.APIStatusError:
                raise
            except Exception:  # the connection broke
                if again == self.resends:
                    raise
                with self.mu:
                    self.outcome.resent += 1
                time.sleep(0.5)
        raise AssertionError("not reached")

    def _run(self, number: int):
        while not self.stopping.is_set():
            number = (number + 1) % len(QUESTIONS)
            try:
                text = self._answer(number)
            except Exception as error:
                with self.mu:
                    self.outcome.lost.append(f"{type(error).__name__}: {error}")
                time.sleep(0.2)
                continue
            with self.mu:
                self.outcome.completed += 1
                if text != self.expected[number]:
                    self.outcome.wrong.append(f"question {number}: {text!r} instead of {self.expected[number]!r}")

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=180)

    def wait_for(self, more: int, timeout_s: float) -> bool:
        wanted, deadline = self.outcome.completed + more, time.monotonic() + timeout_s
        while self.outcome.completed < wanted:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True
