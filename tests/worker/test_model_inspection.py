"""How vLLM learns what a model's class can do: as it does itself, without a process that imports vLLM again.

vLLM 0.32 is installed here. 0.26 to 0.33 inspect by `registry._run_in_subprocess`.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from vllama.worker.model_inspection import in_forked_process, inspect_without_imports

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what the classes import
]

registry = pytest.importorskip("vllm.model_executor.models.registry")

ARCHITECTURES = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "BertForSequenceClassification",
    "Idefics3ForConditionalGeneration",
)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(registry, "_run_in_subprocess", registry._run_in_subprocess)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))  # where results are kept


def inspected(architecture: str) -> Any:
    return registry.ModelRegistry.models[architecture].inspect_model_cls()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_class_is_the_same_inspected_here_and_in_a_forked_process(
    architecture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    inspect_without_imports()
    here = inspected(architecture)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "other"))
    monkeypatch.setattr(registry, "_run_in_subprocess", in_forked_process)

    assert here.architecture == architecture
    assert inspected(architecture) == here


@pytest.mark.slow  # another process imports vLLM, and the test above compares with a forked one
def test_a_class_is_the_same_as_in_vllm_s_own_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    of_vllm = inspected("LlamaForCausalLM")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "other"))
    inspect_without_imports()

    assert inspected("LlamaForCausalLM") == of_vllm


def test_what_fails_in_the_forked_process_is_told_with_its_traceback() -> None:
    def failing() -> None:
        raise KeyError("a field that the class needs")

    with pytest.raises(RuntimeError, match="a field that the class needs"):
        in_forked_process(failing)


def test_a_forked_process_that_is_killed_is_told_too() -> None:
    with pytest.raises(RuntimeError, match=f"status -{signal.SIGKILL.value}"):
        in_forked_process(lambda: os.kill(os.getpid(), signal.SIGKILL))
