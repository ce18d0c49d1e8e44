"""What clients of a server get while faults are injected: a complete reply, a proper error, or something worse."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

PATIENCE = 90.0
"""Seconds after which a reply of which nothing comes any more counts as hung: a load and a hang's limit fit in."""


class Outcome(StrEnum):
    """What became of a request."""

    COMPLETE = "complete"
    ERROR = "error"
    LEFT = "left"
    IMPROPER = "improper"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of a request, and what was said: the error, or what was wrong with the reply."""

    outcome: Outcome
    said: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `leaves_after` is the number of pieces after which the client leaves; None for never."""

    path: str
    stream: bool
    tokens: int
    leaves_after: int | None = None

    def body(self, model: str) -> dict[str, Any]:
        """The JSON to send."""
        body: dict[str, Any] = {"model": model, "stream": self.stream}
        if self.path.startswith("/v1/"):
            body |= {"max_tokens": self.tokens, "temperature": 0, "ignore_eos": True}
        else:
            body |= {"options": {"num_predict": self.tokens, "temperature": 0}}
        if self.path == "/api/generate":
            return body | {"prompt": "Count."}
        return body | {"messages": [{"role": "user", "content": "Count."}]}


PATHS = ("/api/chat", "/api/generate", "/v1/chat/completions")


def some_asks(dice: random.Random, number: int, tokens: int) -> list[Ask]:
    """Requests of all kinds: both dialects, streams and whole replies."""
    return [Ask(PATHS[index % len(PATHS)], dice.random() < 0.7, tokens) for index in range(number)]


def send(url: str, model: str, ask: Ask, begun: threading.Event | None = None) -> Reply:
    """Send a request and follow its reply to the end; sets `begun` with the first piece of a stream."""
    timeout = httpx.Timeout(PATIENCE, connect=10)
    try:
        with (
            httpx.Client(base_url=url, timeout=timeout, trust_env=False) as client,
            client.stream("POST", ask.path, json=ask.body(model)) as reply,
        ):
            lines = []
            for line in reply.iter_lines():
                lines.append(line)
                if begun:
                    begun.set()
                if ask.leaves_after is not None and len(lines) > ask.leaves_after:
                    return Reply(Outcome.LEFT)
            return judge(ask, reply.status_code, reply.headers.get("content-type", ""), lines)
    except httpx.TimeoutException as error:
        return Reply(Outcome.HUNG, type(error).__name__)
    except httpx.TransportError as error:
        return Reply(Outcome.IMPROPER, f"{type(error).__name__}: {error}")


def judge(ask: Ask, status: int, content_type: str, lines: Sequence[str]) -> Reply:
    """Is this reply whole, or a proper error in the format that the client expects?"""
    of_openai = ask.path.startswith("/v1/")
    said = [line for line in lines if line]
    try:
        if status != 200:
            return _error(json.loads("".join(said)), of_openai=of_openai, text=f"status {status}")
        if not ask.stream:
            return _whole(json.loads("".join(said)), of_openai=of_openai)
        if of_openai:
            return _events(said, content_type)
        return _records([json.loads(line) for line in said])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        last = said[-1] if said else ""
        return Reply(
            Outcome.IMPROPER, f"status {status}, {type(error).__name__}: {error}; it ended with {last[:200]!r}"
        )


def _error(body: Any, *, of_openai: bool, text: str) -> Reply:
    message = body["error"]["message"] if of_openai else body["error"]
    if not (isinstance(message, str) and message and "\n" not in message):
        return Reply(Outcome.IMPROPER, f"{text}: {message!r}")
    return Reply(Outcome.ERROR, message)


def _whole(body: Any, *, of_openai: bool) -> Reply:
    is_whole = body["choices"][0]["finish_reason"] if of_openai else body["done"] is True
    return Reply(Outcome.COMPLETE) if is_whole else Reply(Outcome.IMPROPER, f"{body!r:.200}")


def _records(records: list[Any]) -> Reply:
    *before, last = records
    if any("error" in record or record["done"] for record in before):
        return Reply(Outcome.IMPROPER, "a stream went on after its end")
    if "error" in last:
        return _error(last, of_openai=False, text="last line")
    return Reply(Outcome.COMPLETE) if last["done"] is True else Reply(Outcome.IMPROPER, "a stream without an end")


def _events(lines: list[str], content_type: str) -> Reply:
    if not content_type.startswith("text/event-stream"):
        return Reply(Outcome.IMPROPER, f"content type {content_type!r}")
    *events, end = [line.removeprefix("data: ") for line in lines]
    if end != "[DONE]":
        return Reply(Outcome.IMPROPER, f"events that end with {end[:200]!r}")
    last = json.loads(events[-1])
    if "error" in last:
        return _error(last, of_openai=True, text="last event")
    finished = any(choice["finish_reason"] for event in events for choice in json.loads(event)["choices"])
    return Reply(Outcome.COMPLETE) if finished else Reply(Outcome.IMPROPER, "events without a finish_reason")


@dataclass(slots=True)
class Crowd:
    """Clients at work, each in a thread."""

    url: str
    model: str
    threads: list[threading.Thread] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)

    def send(self, asks: Sequence[Ask]) -> None:
        """Send these requests at once."""
        for ask in asks:
            thread = threading.Thread(target=self._follow, args=[ask], daemon=True)
            self.threads.append(thread)
            thread.start()

    def _follow(self, ask: Ask) -> None:
        self.replies.append(send(self.url, self.model, ask, self.begun if ask.stream else None))

    def wait(self) -> list[Reply]:
        """All replies; clients that are still at it after the bound count as hung."""
        deadline = time.monotonic() + 2 * PATIENCE
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hung = sum(thread.is_alive() for thread in self.threads)
        return [*self.replies, *[Reply(Outcome.HUNG, "no end in sight")] * hung]


@contextmanager
def crowd(url: str, model: str, asks: Sequence[Ask]) -> Iterator[Crowd]:
    """Clients that have sent these requests; on leaving, all are waited for."""
    clients = Crowd(url, model)
    clients.send(asks)
    try:
        yield clients
    finally:
        with suppress(RuntimeError):
            clients.wait()
