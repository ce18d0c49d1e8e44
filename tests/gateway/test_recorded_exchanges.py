"""Exchanges recorded with Ollama 0.24.0 that need no answer of a model, played to the gateway alone.

All of them, with a real engine, are played by tests/engine/test_replay.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from replay import results
from replay.deviations import judge
from replay.player import play
from replay.recording import Exchange, exchanges
from replay.results import Result

from vllama.names import ModelName
from vllama.store.manifest import Manifest

from .conftest import RunGateway

pytestmark = pytest.mark.anyio

FIXED_REPLIES = ("/api/version", "/api/status", "/api/me", "/api/experimental/", "/api/copy", "//")
SETTINGS: dict[str, dict[str, Any]] = {
    "864_origins_star_preflight": {"origins": ("*",)},
    "000_api_tags_empty_store": {"empty": True},
}
NEEDS_MORE = {
    "182_generate_num_ctx_small_truncate_false",  # a tokenizer
    "310_embed_truncate_false_long",  # likewise
    "412_delete_known_again",
}
ANSWERED_HERE = {"lenient input", "empty text"}
"""Rules by which a model answers where Ollama refuses."""


def needs_no_model(exchange: Exchange) -> bool:
    """Whether Ollama refused, loaded, unloaded, or said what it always says."""
    request, response = exchange.request, exchange.response
    kept = results.committed()[exchange.name]
    if kept.word == "different" or exchange.name in NEEDS_MORE or ANSWERED_HERE & {*kept.rules}:
        return False
    loads = b'"done_reason":"load"' in response.body or b'"done_reason":"unload"' in response.body
    refused = response.status not in {200, 503}
    return loads or refused or request.path == "/" or request.path.startswith(FIXED_REPLIES)


@pytest.mark.parametrize("name", [exchange.name for exchange in exchanges().values() if needs_no_model(exchange)])
async def test_a_recorded_request_gets_the_recorded_reply(
    name: str, run_gateway: RunGateway, manifest: Manifest
) -> None:
    exchange = exchanges()[name]
    async with run_gateway(**SETTINGS.get(name, {})) as gateway:
        if "empty" not in SETTINGS.get(name, {}):
            gateway.store.put(replace(manifest, name=ModelName.parse("mycopy")))
        (response,) = await asyncio.to_thread(play, exchange.request, port=gateway.port)
        verdict = judge(exchange, response)
        assert verdict.left == ()
        assert bool(gateway.launcher.workers) == (b'"done_reason":"load"' in exchange.response.body)
        assert Result.of(verdict) == results.committed()[name]
