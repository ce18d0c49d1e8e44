"""What vLLM compiles is shared by models that differ in their place and weights alone.

vLLM 0.32 is installed here; with the sources of 0.33 these tests pass as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_families import FAMILIES
from tiny_snapshot import write_snapshot

from vllama.worker.shared_code import without_path

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _classes_are_inspected_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in another process for each architecture, which imports vLLM."""
    from vllm.model_executor.models import registry

    monkeypatch.setattr(registry, "_run_in_subprocess", lambda inspect: inspect())


def model_config(path: Path, **fields: Any) -> Any:
    from vllm.config import ModelConfig

    if not path.exists():
        write_snapshot(path)
    if fields:
        config = json.loads((path / "config.json").read_bytes())
        (path / "config.json").write_text(json.dumps({**config, **fields}))
    return ModelConfig(str(path), skip_tokenizer_init=True, max_model_len=64, dtype="float32")


def test_two_places_have_one_hash_and_two_configurations_have_two(tmp_path: Path) -> None:
    from vllm.config import ModelConfig

    of_vllm = getattr(ModelConfig.compute_hash, "__wrapped__", ModelConfig.compute_hash)
    shared = without_path(of_vllm)
    here, there = model_config(tmp_path / "here"), model_config(tmp_path / "there")
    assert of_vllm(here) != of_vllm(there), "vLLM counts the path in: otherwise this adapter can go"
    assert shared(here) == shared(there)
    assert shared(model_config(tmp_path / "other", num_hidden_layers=3)) != shared(here)
    assert here.model == str(tmp_path / "here")
    assert here.hf_config.name_or_path == str(tmp_path / "here")


@pytest.mark.parametrize(
    "name", ["gemma2", "gemma3", "granite", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3"]
)
def test_the_place_counts_for_no_architecture(name: str, tmp_path: Path) -> None:
    from vllm.config import ModelConfig

    shared = without_path(getattr(ModelConfig.compute_hash, "__wrapped__", ModelConfig.compute_hash))
    for place in ("here", "there"):
        FAMILIES[name].configure().save_pretrained(tmp_path / place)
    assert shared(model_config(tmp_path / "here")) == shared(model_config(tmp_path / "there"))


def test_quantized_models_and_models_with_code_of_their_own_keep_vllms_hash(tmp_path: Path) -> None:
    seen: list[Any] = []

    def compute_hash(config: Any) -> str:
        seen.append(config)
        return "a hash"

    shared = without_path(compute_hash)
    plain = model_config(tmp_path / "plain")
    shared(plain)
    plain.quantization = "awq"
    shared(plain)
    plain.quantization, plain.trust_remote_code = None, True
    shared(plain)
    assert [config is plain for config in seen] == [False, True, True]


def test_vllms_own_hash_is_replaced_once_and_only_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import ModelConfig

    from vllama.worker import shared_code

    of_vllm = getattr(ModelConfig.compute_hash, "__wrapped__", ModelConfig.compute_hash)
    monkeypatch.setattr(ModelConfig, "compute_hash", of_vllm)
    for plugins, is_wrapped in (("", False), ("vllama", True), ("vllama", True)):
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
        shared_code.register()
        assert hasattr(ModelConfig.compute_hash, "__wrapped__") is is_wrapped
    assert ModelConfig.compute_hash.__wrapped__ is of_vllm
