"""Five clients that mean no harm: they chat, stream, list, embed and ask for JSON, one request after the other."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

PATIENCE = 60.0


@dataclass(slots=True)
class Log:
    """What one innocent client got. `gap` is the longest time without a byte or a reply, in seconds."""

    name: str
    replies: int = 0
    errors: list[str] = field(default_factory=list)
    gap: float = 0.0


class Innocents:
    """The clients, each in a thread, until `stop`."""

    def __init__(self, url: str, model: str, embedder: str = "") -> None:
        """Send to a model that generates; without an `embedder`, the fourth client asks for the list of models."""
        self._url, self._model, self._embedder = url, model, embedder
        uses = {
            "chat": self._chat,
            "stream": self._stream,
            "list": self._list,
            "embed": self._embed,
            "json": self._json,
        }
        self.logs = [Log(name) for name in uses]
        self._ends = threading.Event()
        pairs = zip(self.logs, uses.values(), strict=True)
        self._threads = [threading.Thread(target=self._follow, args=pair, daemon=True) for pair in pairs]
        for thread in self._threads:
            thread.start()

    def renew(self) -> list[Log]:
        """Return what they got since the last call, and begin to count again."""
        old = [Log(log.name, log.replies, [*log.errors], log.gap) for log in self.logs]
        for log in self.logs:
            log.replies, log.errors, log.gap = 0, [], 0.0
        return old

    def until_each_has(self, replies: int) -> None:
        """Wait until each client has so many replies since the last `renew`; errors count."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and any(log.replies + len(log.errors) < replies for log in self.logs):
            time.sleep(0.02)

    def stop(self) -> None:
        """End all clients."""
        self._ends.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _follow(self, log: Log, use: Callable[[httpx.Client, Log], None]) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE, trust_env=False) as client:
            while not self._ends.is_set():
                began = time.monotonic()
                try:
                    use(client, log)
                except (httpx.HTTPError, ValueError, AssertionError) as error:
                    log.errors.append(f"{type(error).__name__}: {error}"[:300])
                    time.sleep(0.1)
                else:
                    log.replies += 1
                log.gap = max(log.gap, time.monotonic() - began) if use != self._stream else log.gap

    def _asked(self, client: httpx.Client, path: str, body: Any) -> Any:
        reply = client.post(path, json={"model": self._model, "stream": False, **body})
        assert reply.status_code == 200, f"{reply.status_code} {reply.text}"
        return reply.json()

    def _chat(self, client: httpx.Client, log: Log) -> None:
        del log
        options = {"num_predict": 2, "temperature": 0}
        asked = {"messages": [{"role": "user", "content": "hi"}], "options": options}
        assert self._asked(client, "/api/chat", asked)["done"] is True

    def _stream(self, client: httpx.Client, log: Log) -> None:
        body = {"model": self._model, "prompt": "Count.", "options": {"num_predict": 32, "temperature": 0}}
        last, line = time.monotonic(), ""
        with client.stream("POST", "/api/generate", json=body) as reply:
            for line in reply.iter_lines():  # noqa: B007 - the last is looked at
                now = time.monotonic()
                log.gap, last = max(log.gap, now - last), now
        assert json.loads(line or "{}").get("done") is True, f"{reply.status_code} {line}"

    def _list(self, client: httpx.Client, log: Log) -> None:
        del log
        reply = client.get("/api/tags")
        assert reply.status_code == 200, f"{reply.status_code} {reply.text}"
        assert reply.json()["models"]
        time.sleep(0.02)

    def _embed(self, client: httpx.Client, log: Log) -> None:
        if not self._embedder:
            self._list(client, log)
            return
        reply = client.post("/api/embed", json={"model": self._embedder, "input": "a text"})
        assert reply.status_code == 200, f"{reply.status_code} {reply.text}"
        assert reply.json()["embeddings"]

    def _json(self, client: httpx.Client, log: Log) -> None:
        del log
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
        asked = {
            "messages": [{"role": "user", "content": "Say JSON."}],
            "format": schema,
            "options": {"num_predict": 12, "temperature": 0},
        }
        assert self._asked(client, "/api/chat", asked)["done"] is True
