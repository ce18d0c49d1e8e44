"""Usage by key with the real engine: each route is counted as its own reply counts itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine.server import Server
from vllama.keys.key import new_key
from vllama.keys.key_file import KeyFile
from vllama.keys.usage import Usage, read_usage
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

QUESTION = "Tell me a long story about a lighthouse."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]


def counted(name: str) -> tuple[str, dict[str, Any]]:
    """Return path and body of a request that is named after its route."""
    path, _, how = name.partition(" ")
    body = {"model": "tiny", "stream": how == "stream"}
    if path.startswith("/api"):
        return path, {**body, "messages": MESSAGES, "prompt": QUESTION, "options": {"num_predict": 8}}
    if path == "/v1/responses":
        return path, {**body, "input": QUESTION, "max_output_tokens": 8}
    return path, {**body, "messages": MESSAGES, "prompt": QUESTION, "max_tokens": 8}


ROUTES = [
    f"{path} {how}"
    for path in (
        "/api/chat",
        "/api/generate",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
    )
    for how in ("stream", "whole")
]


@pytest.fixture(scope="module")
def secrets(store: ModelStore, tiny: str) -> Iterator[dict[str, str]]:
    """A key for each route, named after it."""
    assert tiny.startswith("tiny")
    file = KeyFile(store.root / "usage-test-keys.json")
    made = {}
    for number, name in enumerate(ROUTES):
        made[name], key = new_key(f"key{number}")
        file.add(key)
    yield made
    file.path.unlink()


def test_every_route_is_counted_as_its_reply_says(store: ModelStore, secrets: dict[str, str]) -> None:
    files = {
        "VLLAMA_KEYS": str(store.root / "usage-test-keys.json"),
        "VLLAMA_USAGE": str(store.root / "usage-test.sqlite3"),
    }
    server = Server(store.root, environ=files)
    said: dict[str, tuple[int, int]] = {}
    try:
        with httpx.Client(base_url=server.url, timeout=240) as client:
            for name, secret in secrets.items():
                path, body = counted(name)
                reply = client.post(path, json=body, headers={"authorization": f"Bearer {secret}"})
                assert reply.status_code == 200, reply.text
                assert "vllama-tokens" not in reply.text + str(reply.headers)
                said[name] = figures(reply.text)
    finally:
        server.close()
    record = {usage.group[0]: usage for usage in read_usage(store.root / "usage-test.sqlite3", 0, ["key"])}
    for number, name in enumerate(ROUTES):
        usage: Usage = record[f"key{number}"]
        assert usage.requests == 1, name
        assert usage.output_tokens == 8, name
        assert usage.prompt_tokens > 8, name
        prompt, output = said[name]
        assert (prompt or usage.prompt_tokens, output or 8) == (usage.prompt_tokens, usage.output_tokens), name


def figures(text: str) -> tuple[int, int]:
    """Return the largest counts of prompt and output tokens that a reply states, 0 for those that it does not."""
    prompt = output = 0
    for line in text.splitlines():
        data = line.removeprefix("data: ")
        if not data.startswith("{"):
            continue
        event = json.loads(data)
        for found in (
            event,
            event.get("usage"),
            *(part.get("usage") for part in event.values() if isinstance(part, dict)),
        ):
            if isinstance(found, dict):
                prompt = max(
                    prompt, *(found.get(key) or 0 for key in ("prompt_eval_count", "prompt_tokens", "input_tokens"))
                )
                output = max(
                    output, *(found.get(key) or 0 for key in ("eval_count", "completion_tokens", "output_tokens"))
                )
    return prompt, output
