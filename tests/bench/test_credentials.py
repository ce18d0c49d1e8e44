"""The key that the bench sends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from vllama.bench.generator import Target, open_session
from vllama.keys.credentials import credentials


@pytest.mark.parametrize(("key", "headers"), [("", {}), (" secret ", {"Authorization": "Bearer secret"})])
def test_requests_have_the_key_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, key: str, headers: dict[str, str]
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", key)

    async def sent() -> dict[str, str]:
        async with open_session(Target("http://127.0.0.1:1", "ollama", "m")) as session:
            return dict(session.headers)

    assert credentials() == headers
    assert asyncio.run(sent()) == headers


def test_every_client_of_the_bench_sends_it() -> None:
    folder = Path(credentials.__code__.co_filename).parent
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        made = text.count("httpx.Client(") - text.count("client: httpx.Client(") + text.count("aiohttp.ClientSession(")
        assert text.count("headers=credentials()") == made, path.name
