"""Which workers of the tests may be forked from the process that has imported vLLM."""

from __future__ import annotations

import pytest

from engine.prepared.serving import imported_alike

IMPORTED_IN = {"PATH": "/bin", "VLLM_PLUGINS": "vllama", "TORCHDYNAMO_DISABLE": "1"}


@pytest.mark.parametrize(
    "name", ["OLLAMA_MODELS", "VLLM_RPC_BASE_PATH", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CACHE_ROOT", "HTTPS_PROXY"]
)
def test_variables_that_no_import_reads_may_differ(name: str) -> None:
    assert imported_alike(IMPORTED_IN, {**IMPORTED_IN, name: "other"})


@pytest.mark.parametrize("name", ["VLLM_PLUGINS", "CXX", "HF_HOME", "LD_PRELOAD"])
def test_a_variable_that_an_import_reads_asks_for_a_fresh_process(name: str) -> None:
    assert not imported_alike(IMPORTED_IN, {**IMPORTED_IN, name: "other"})


def test_a_variable_that_is_missing_counts_as_different() -> None:
    compiled = {name: value for name, value in IMPORTED_IN.items() if name != "TORCHDYNAMO_DISABLE"}

    assert not imported_alike(IMPORTED_IN, compiled)
