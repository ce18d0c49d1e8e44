"""A campaign with a stand-in for vLLM: the gateway's part of each fault, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_snapshot import write_snapshot

from faults.campaign import Result, run
from faults.kinds import KINDS
from faults.scene import stock
from faults.stand_in_vllm import install
from vllama.store.model_store import ModelStore

pytest.importorskip("setproctitle")

QUICK = {"VLLAMA_HANG_TIMEOUT": "2s", "OLLAMA_LOAD_TIMEOUT": "5s"}


@pytest.mark.timeout(600)
def test_whatever_fails_clients_are_told_the_service_comes_back_and_nothing_is_left(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    stock(store, write_snapshot(tmp_path / "tiny"))
    results: list[Result] = []
    run(store.root, len(KINDS), 1, results.append, environ={**install(tmp_path / "vllm"), **QUICK})

    assert [result for result in results if not result.is_fine] == []
    assert {result.kind for result in results} == {kind.name for kind in KINDS}
