"""Every exchange that was recorded with Ollama 0.24.0, played again to this server with a real engine.

What came of each is kept in `tests/replay/results.json` and shown in docs/compatibility.md; any other result fails.
Of the exchanges in which the model writes text, a sample is played; all of them in the full run, `scripts/test --slow`.
To keep new results: VLLAMA_TEST_FULL=1 REPLAY_KEEP=1, then scripts/docs.py.
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
from sampling import count, full_run

from engine.server import Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SMOLLM2 = ModelName.parse("smollm2:135m")


@pytest.fixture(scope="module")
def replayed(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Result]:
    """The results of the exchanges that were played."""
    own = ModelStore(tmp_path_factory.mktemp("replayed"))
    found: dict[str, Verdict] = {}
    for settings, scenes in script.scenes(one_text_of=count(6, 1)):
        server = Server(own.root, environ=settings)
        try:
            for scene in scenes:
                found |= _played(scene, server)
                if not own.list():  # the first was recorded with an empty store
                    own.put(store.get(SMOLLM2))
        finally:
            server.close()
    verdicts = {name: Result.of(found[name]) for name in exchanges() if name in found}
    if os.environ.get("REPLAY_KEEP"):
        assert verdicts.keys() == exchanges().keys(), "results are kept of a full run only"
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


def test_every_exchange_is_as_it_was(replayed: Mapping[str, Result]) -> None:
    print("".join(results.tables(replayed)))
    kept = results.committed()

    if full_run():
        assert {name: row for name, row in replayed.items() if row != kept.get(name)} == {}
    else:
        assert {name: row for name, row in replayed.items() if not row.needs_no_more_than(kept[name])} == {}
