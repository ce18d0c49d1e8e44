"""Every exchange that was recorded with Ollama 0.24.0, played again to this server with a real engine.

What came of each is kept in `tests/replay/results.json` and shown in docs/compatibility.md; any other result fails.
To keep new results: REPLAY_KEEP=1, then scripts/docs.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest
from replay import results, script
from replay.deviations import Verdict, judge
from replay.player import play
from replay.recording import exchanges
from replay.results import Result

from engine.server import Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

SMOLLM2 = ModelName.parse("smollm2:135m")


@pytest.fixture(scope="module")
def replayed(store: ModelStore, minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Result]:
    """The results of a whole replay."""
    own = ModelStore(tmp_path_factory.mktemp("replayed"))
    found: dict[str, Verdict] = {}
    for settings, scenes in script.scenes():
        server = Server(own.root, environ=settings)
        try:
            for scene in scenes:
                found |= _played(scene, server)
                if not own.list():  # the first was recorded with an empty store
                    own.put(store.get(SMOLLM2))
                found |= _embedded(scene, server, found, store, own, minilm)
        finally:
            server.close()
    verdicts = {name: Result.of(found[name]) for name in exchanges()}
    if os.environ.get("REPLAY_KEEP"):
        results.commit(verdicts)
    return verdicts


def _played(scene: script.Scene, server: Server) -> dict[str, Verdict]:
    for request in script.BEFORE.get(scene[0].name, list)():
        play(request, port=_port(server))
    names, requests = zip(*script.sent(scene), strict=True)
    responses = dict(zip(names, play(*requests, port=_port(server)), strict=True))
    return {exchange.name: judge(exchange, responses[exchange.name]) for exchange in scene}


def _port(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def _embedded(
    scene: script.Scene,
    server: Server,
    found: Mapping[str, Verdict],
    store: ModelStore,
    own: ModelStore,
    minilm: str,
) -> dict[str, Verdict]:
    """The verdicts where an embedding model answers too: what is allowed to the one is not to the other."""
    exchange = script.of_an_embedding_model(scene[0], minilm)
    if exchange is None:
        return {}
    name = ModelName.parse(minilm)
    own.put(store.get(name))
    try:
        (response,) = play(exchange.request, port=_port(server))
    finally:
        own.remove(name)
    chat, verdict = found[exchange.name], judge(exchange, response)
    return {exchange.name: Verdict(tuple(dict.fromkeys((*chat.rules, *verdict.rules))), (*chat.left, *verdict.left))}


def test_every_exchange_is_as_it_was(replayed: Mapping[str, Result]) -> None:
    print("".join(results.tables(replayed)))
    kept = results.committed()

    assert {name: row for name, row in replayed.items() if row != kept.get(name)} == {}
