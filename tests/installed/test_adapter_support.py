"""What is read from vLLM's files of the architectures that take LoRA adapters, beside what vLLM itself says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from vllama.installed import adapter_support as module
from vllama.installed.adapter_support import AdapterSupport, adapter_support
from vllama.installed.registry import vllm_directory


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vLLM that is made of a few files."""
    monkeypatch.setattr(module, "vllm_directory", lambda: tmp_path)
    adapter_support.cache_clear()
    module._parsed.cache_clear()
    place = tmp_path / "model_executor" / "models"
    place.mkdir(parents=True)
    (place / "registry.py").write_text(
        "import does_not_exist\n"
        '_TEXT_GENERATION_MODELS = {"Own": ("own", "Own"), "Heir": ("heir", "Heir"), "None": ("heir", "Plain"),\n'
        '    "Beside": ("heir", "Beside"), "Lost": ("lost", "Lost")}\n'
        '_MULTIMODAL_MODELS = {"Seer": ("own", "Seer")}\n'
        '_EMBEDDING_MODELS = {"Encoder": ("own", "Own")}\n'
    )
    (place / "own.py").write_text(
        "from .interfaces import SupportsLoRA\n"
        "class Own(Module, SupportsLoRA):\n"
        '    embedding_modules = {"embed_tokens": "x", "lm_head": "y"}\n'
        "class Seer(Own):\n"
        "    embedding_modules: dict = {}\n"
    )
    (place / "heir.py").write_text(
        "from vllm.model_executor.models.own import Own as Parent\n"
        "from .own import Seer\n"
        "class Heir(Parent): ...\n"
        "class Beside(Seer): ...\n"
        "class Plain(Module): ...\n"
    )
    return place


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("Own", AdapterSupport(takes=True, embeddings=frozenset({"embed_tokens", "lm_head"}))),
        ("Heir", AdapterSupport(takes=True, embeddings=frozenset({"embed_tokens", "lm_head"}))),
        ("Seer", AdapterSupport(takes=True, embeddings=frozenset())),
        ("Beside", AdapterSupport(takes=True, embeddings=frozenset())),
        ("None", AdapterSupport(takes=False, embeddings=frozenset())),
        ("Lost", None),
        ("Encoder", None),
        ("Unheard", None),
    ],
)
def test_a_class_says_it_itself_or_inherits_it(
    models: Path, architecture: str, expected: AdapterSupport | None
) -> None:
    assert adapter_support(architecture) == expected


def test_without_a_vllm_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter_support.cache_clear()
    monkeypatch.setattr(module, "vllm_directory", lambda: None)
    assert adapter_support("LlamaForCausalLM") is None
    adapter_support.cache_clear()


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "architecture",
    ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
     "Gemma2ForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel", "GraniteForCausalLM", "GptOssForCausalLM",
     "Idefics3ForConditionalGeneration", "BloomForCausalLM"],
)  # fmt: skip
def test_it_is_what_vllm_itself_says(architecture: str) -> None:
    from vllm.model_executor.models.interfaces import supports_lora

    adapter_support.cache_clear()
    classes = module._classes(Path(vllm_directory() or "") / "model_executor" / "models" / "registry.py")
    where, name = classes[architecture]
    kind = getattr(importlib.import_module(f"vllm.model_executor.models.{where}"), name)
    found = adapter_support(architecture)
    assert found is not None
    assert found.takes == supports_lora(kind)
    if found.takes:
        assert found.embeddings == frozenset(kind.embedding_modules)
