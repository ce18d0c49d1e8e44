"""A short campaign of faults on the real engine; scripts/faults runs longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.campaign import Result, run
from faults.scene import stock
from sampling import count

from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


def test_whatever_fails_clients_are_told_the_service_comes_back_and_nothing_is_left(
    tiny_snapshot: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = ModelStore(tmp_path_factory.mktemp("faults"))
    stock(store, tiny_snapshot)
    results: list[Result] = []
    number = count(2, 12)
    run(store.root, number=number, seed=1, on_result=results.append)

    assert [result for result in results if not result.is_fine] == []
    assert len(results) == number
    assert sum(result.outcomes.get("error", 0) for result in results) > 0
