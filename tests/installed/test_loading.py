"""What `installed_loading` reads from vLLM's files, beside what vLLM itself says, and of files of other versions."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from vllama.installed import loading
from vllama.installed.loading import Loading, installed_loading

REGISTRY = """
_TEXT_GENERATION_MODELS = {"LlamaForCausalLM": ("llama", "LlamaForCausalLM")}
_EMBEDDING_MODELS = {"BertModel": ("bert", "BertEmbeddingModel"), **{}}
_VLLM_MODELS = {**_TEXT_GENERATION_MODELS, **_EMBEDDING_MODELS}
_PREVIOUSLY_SUPPORTED_MODELS = {"OldForCausalLM": "0.10.2"}
_OOT_SUPPORTED_MODELS = {"BartModel": "https://example.com/bart"}
"""
METHODS = """
QuantizationMethods = Literal["awq", "gptq"]
DEPRECATED_QUANTIZATION_METHODS = ["old_fp8"]
"""
SUFFIXES = '_SUFFIX_TO_DEFAULTS: list = [("ForCausalLM", ("generate", "none")), ("Model", ("pooling", "embed"))]'
REFUSES = "def check(desc_act):\n    if desc_act:\n        raise ValueError\n"
ACCEPTS = "def check(desc_act):\n    if desc_act:\n        order()\n"


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    installed_loading.cache_clear()
    yield
    installed_loading.cache_clear()


def _install(root: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> Loading:
    """Read a vLLM of these files; `__` in a name stands for a slash."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(loading, "vllm_directory", lambda: root)
    return installed_loading()


def _written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gptq: str) -> Loading:
    for path in ("model_executor/layers/quantization/__init__.py", "_version.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "model_executor/layers/quantization/__init__.py").write_text(METHODS)
    (tmp_path / "_version.py").write_text("__version__ = version = '0.40.1'\n")
    return _install(
        tmp_path,
        monkeypatch,
        model_executor__models__registry=REGISTRY,
        config__model=SUFFIXES,
        model_executor__layers__quantization__utils__gptq_utils=gptq,
    )


def test_tables_version_and_checks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _written(tmp_path, monkeypatch, REFUSES)
    assert found.version == "0.40.1"
    assert found.architectures == {"LlamaForCausalLM", "BertModel"}
    assert (found.removed, found.elsewhere) == ({"OldForCausalLM": "0.10.2"}, {"BartModel": "https://example.com/bart"})
    assert found.quantizations == {"awq", "gptq"}
    assert found.deprecated == {"old_fp8"}
    assert (found.orders_gptq, found.orders_compressed_tensors) == (False, True)


def test_a_version_without_the_check_orders_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _written(tmp_path, monkeypatch, ACCEPTS).orders_gptq


def test_an_architecture_is_known_by_its_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _written(tmp_path, monkeypatch, ACCEPTS)
    assert found.knows("LlamaModel")
    assert not found.knows("MoondreamForCausalLM")


@pytest.mark.parametrize("root", [None, Path("/nonexistent")])
def test_without_vllm_or_with_other_files_nothing_is_refused(
    root: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "vllm_directory", lambda: root)
    found = installed_loading()
    assert found.knows("Anything")
    assert (found.removed, found.quantizations, found.deprecated) == ({}, frozenset(), frozenset())
    assert found.orders_gptq
    assert found.orders_compressed_tensors


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_the_installed_vllm_says_the_same() -> None:
    registry = importlib.import_module("vllm.model_executor.models.registry")
    methods = importlib.import_module("vllm.model_executor.layers.quantization")
    found = installed_loading()
    supported = set(registry.ModelRegistry.get_supported_archs())
    assert supported <= found.architectures
    assert found.removed == registry._PREVIOUSLY_SUPPORTED_MODELS
    assert found.quantizations == set(methods.QUANTIZATION_METHODS)
    assert found.deprecated == set(methods.DEPRECATED_QUANTIZATION_METHODS)
    assert found.version == importlib.import_module("vllm").__version__


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_the_installed_vllm_refuses_activation_ordering_where_its_files_say_so() -> None:
    gptq = importlib.import_module("vllm.model_executor.layers.quantization.auto_gptq").AutoGPTQConfig
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
    refused = nullcontext() if installed_loading().orders_gptq else pytest.raises(ValueError, match="desc_act")
    with refused:
        gptq.from_config(config)
