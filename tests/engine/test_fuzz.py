"""Random requests to every route of a real engine: a sample in each push, more in the full run and by scripts/fuzz.

The seed is fixed, so that a failure comes again: `VLLAMA_TEST_SEED` names another one, and so does `scripts/fuzz`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz.campaign import ENVIRONMENT, FLAGS, Campaign, table
from sampling import count

from engine.server import Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SEED = int(os.environ.get("VLLAMA_TEST_SEED", "1"))


def test_whatever_is_sent_to_a_route_the_server_answers_as_documented_and_goes_on(
    tiny_snapshot: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = ModelStore(tmp_path_factory.mktemp("fuzz"))
    for _ in pull(own, ModelName.parse("tiny"), from_path=tiny_snapshot):
        pass
    server = Server(own.root, *FLAGS, environ=ENVIRONMENT)
    try:
        report = Campaign(server, ["tiny:latest"], SEED, seconds=1200).run(count(80, 5000))
    finally:
        server.close()
    print("\n".join(table(report)))  # the seed among it
    assert report.wrong == [], report.faults
    assert report.requests >= count(80, 5000)
