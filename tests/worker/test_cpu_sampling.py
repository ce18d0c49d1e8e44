"""The partial sort of the logits, beside vLLM's own function. No engine starts, but vLLM is imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]

VOCABULARY = 5000
TARGET = "apply_top_k_top_p_pytorch"


@pytest.fixture
def vllms(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's module, with its own function; what a test puts there goes with it."""
    module = importlib.import_module("vllm.v1.sample.ops.topk_topp_sampler")
    function = getattr(module, TARGET)
    monkeypatch.setattr(module, TARGET, getattr(function, "__wrapped__", function))
    return module


@pytest.fixture
def ours() -> Any:
    """vllama.worker.cpu_sampling."""
    return importlib.import_module("vllama.worker.cpu_sampling")


def batch(*rows: tuple[int, float], seed: int = 0) -> tuple[Any, Any, Any]:
    """Logits, top_k and top_p of some requests."""
    import torch

    logits = torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    return logits, torch.tensor([k for k, _ in rows], dtype=torch.int32), torch.tensor([p for _, p in rows])


@pytest.mark.parametrize("seed", range(20))
def test_it_keeps_the_tokens_that_vllm_keeps(ours: Any, vllms: Any, seed: int) -> None:
    whole: Callable[..., Any] = getattr(vllms, TARGET)
    logits, k, p = batch((40, 0.9), (1, 0.9), (40, 1.0), (1000, 0.95), (40, 0.01), (7, 0.5), seed=seed)

    kept = ours.partially_sorting(whole)(logits.clone(), k, p)

    assert kept.equal(whole(logits.clone(), k.clone(), p))


def test_the_likeliest_token_stays_however_small_top_p_is(ours: Any, vllms: Any) -> None:
    logits, k, p = batch((40, 1e-9))

    kept = ours.partially_sorting(getattr(vllms, TARGET))(logits.clone(), k, p).isfinite()

    assert kept.nonzero().tolist() == [[0, int(logits.argmax())]]


@pytest.mark.parametrize("without", ["top_k", "top_p"])
def test_a_batch_with_one_limit_alone_is_left_to_vllm(ours: Any, without: str) -> None:
    logits, k, p = batch((40, 0.9), (40, 0.9))
    arguments = (logits, None if without == "top_k" else k, None if without == "top_p" else p)
    asked: list[object] = []

    def record(*arguments: object, **others: object) -> str:
        asked.append((arguments, others))
        return "vLLM's answer"

    assert ours.partially_sorting(record)(*arguments, allow_cpu_sync=True) == "vLLM's answer"
    assert asked == [(arguments, {"allow_cpu_sync": True})]


def test_only_what_a_partial_sort_cannot_do_is_sorted_whole(ours: Any, vllms: Any) -> None:
    whole: Callable[..., Any] = getattr(vllms, TARGET)
    logits, k, p = batch((40, 0.9), (VOCABULARY, 0.9), (VOCABULARY, 1.0), (2000, 0.9), (3, 0.2))
    sorted_whole: list[object] = []

    def record(logits: Any, k: Any, p: Any) -> Any:
        sorted_whole.append(k.tolist())
        return whole(logits, k, p)

    kept = ours.partially_sorting(record)(logits.clone(), k, p)

    assert kept.equal(whole(logits.clone(), k.clone(), p))
    assert sorted_whole == [[VOCABULARY, 2000]], "a greedy request has neither limit"


def test_vllm_loads_it_where_it_is_asked_for(ours: Any, vllms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = getattr(vllms, TARGET)
    monkeypatch.setenv("VLLM_PLUGINS", "vllama")
    monkeypatch.setattr("vllm.plugins.plugins_loaded", False)

    importlib.import_module("vllm.plugins").load_general_plugins()
    loaded = getattr(vllms, TARGET)
    ours.register()

    assert loaded.__wrapped__ is whole
    assert getattr(vllms, TARGET) is loaded, "the second time does nothing"


@pytest.mark.parametrize("plugins", [None, "", "another"])
def test_a_server_that_did_not_ask_for_us_is_left_alone(
    ours: Any, vllms: Any, monkeypatch: pytest.MonkeyPatch, plugins: str | None
) -> None:
    whole = getattr(vllms, TARGET)
    if plugins is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)

    ours.register()

    assert getattr(vllms, TARGET) is whole
