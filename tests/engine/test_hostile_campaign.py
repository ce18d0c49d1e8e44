"""Attacks on a real engine: the costliest in each push, all in the full run; scripts/hostile runs more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile.attacks import chosen
from hostile.campaign import SETTLED, run
from sampling import count, full_run

from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

COSTLIEST = ("large bodies at once", "prompts of 10 MB", "schemas", "grammars")

SETTLED_AFTER_FEW = 64 << 20
"""Bytes that the gateway may keep after a sample: 39 MiB were seen on a busy machine, and 8 after 224 attacks."""


def test_whatever_one_client_does_the_others_are_served_and_nothing_is_left(
    store: ModelStore, tiny_snapshot: Path, minilm: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = ModelStore(tmp_path_factory.mktemp("hostile"))
    own.put(store.get(ModelName.parse(minilm)))
    for _ in pull(own, ModelName.parse("tiny"), from_path=tiny_snapshot):
        pass
    kinds = chosen(() if full_run() else COSTLIEST)
    number = len(kinds) * count(1, 8)
    report = run(
        own.root,
        "tiny:latest",
        kinds,
        number,
        seed=1,
        embedder=minilm,
        settled=count(SETTLED_AFTER_FEW, SETTLED),
        is_alone=full_run(),
    )
    assert report.wrong == []
    assert len(report.results) == number
