"""The attacks with a stand-in for vLLM: the gateway's part of each, without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.stand_in_vllm import install
from tiny_snapshot import write_snapshot

from hostile.attacks import KINDS
from hostile.campaign import Result, run
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytest.importorskip("setproctitle")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_one_client_sends_the_gateway_serves_the_others(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    for _ in pull(store, ModelName.parse("tiny"), from_path=write_snapshot(tmp_path / "tiny")):
        pass
    results: list[Result] = []
    report = run(store.root, "tiny:latest", KINDS, len(KINDS), 1, results.append, environ=install(tmp_path / "vllm"))
    assert report.wrong == []
    assert {result.kind for result in results} == {kind.name for kind in KINDS}
