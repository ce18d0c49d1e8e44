"""vLLM looks for the chat template of a processor only where a model may have one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllama.worker.processor_templates import has_no_processor, only_with_processor, register

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

hf = pytest.importorskip("vllm.renderers.hf")


def snapshot(folder: Path, model: Any, tokenizer: Any = None, *files: str) -> Path:
    (folder / "config.json").write_text(json.dumps(model))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer or {"tokenizer_class": "TokenizersBackend"}))
    for name in files:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "qwen3", "gemma3_text", "phi3", "mistral", "granite", "gpt_oss"]
)
def test_a_model_of_text_has_none(tmp_path: Path, model_type: str) -> None:
    assert has_no_processor(snapshot(tmp_path, {"model_type": model_type}))


@pytest.mark.parametrize(
    ("model", "tokenizer", "files"),
    [
        ({"model_type": "gemma3"}, None, ()),
        ({"model_type": "qwen2_5_vl"}, None, ()),
        ({"model_type": "llama"}, None, ("processor_config.json",)),
        ({"model_type": "llama"}, None, ("preprocessor_config.json",)),
        ({"model_type": "llama"}, None, ("video_preprocessor_config.json",)),
        ({"model_type": "llama", "processor_class": "Mine"}, None, ()),
        ({"model_type": "llama"}, {"processor_class": "Mine"}, ()),
        ({"model_type": "own", "auto_map": {"AutoProcessor": "own.Mine"}}, None, ()),
        ({"model_type": ["llama"]}, None, ()),
        ({}, None, ()),
        ([1], None, ()),
        ({"model_type": "llama", "auto_map": 1}, None, ()),
    ],
)
def test_one_that_may_be_there_is_looked_for(
    tmp_path: Path, model: Any, tokenizer: Any, files: tuple[str, ...]
) -> None:
    assert not has_no_processor(snapshot(tmp_path, model, tokenizer, *files))


def test_a_folder_that_is_not_there_is_left_to_vllm(tmp_path: Path) -> None:
    assert not has_no_processor(tmp_path / "org" / "name")


def test_transformers_finds_none_either(tmp_path: Path) -> None:
    """It loads a tokenizer where it finds no processor."""
    from tokenizers import Tokenizer, models
    from transformers import AutoProcessor, ProcessorMixin

    folder = snapshot(tmp_path, {"model_type": "llama"})
    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(folder / "tokenizer.json"))
    assert has_no_processor(folder)

    assert not isinstance(AutoProcessor.from_pretrained(str(folder)), ProcessorMixin)


def test_vllm_is_asked_about_the_others(tmp_path: Path) -> None:
    asked = []

    def look(tokenizer: Any, **named: Any) -> str:
        asked.append((tokenizer.name_or_path, named))
        return "its template"

    template = only_with_processor(look)
    without = snapshot(tmp_path, {"model_type": "llama"})
    assert template(SimpleNamespace(name_or_path=str(without)), revision=None) is None
    assert template(SimpleNamespace(name_or_path="org/name"), revision=None) == "its template"
    assert asked == [("org/name", {"revision": None})]


def test_files_are_read_once_and_not_at_each_request(tmp_path: Path) -> None:
    folder = snapshot(tmp_path, {"model_type": "llama"})
    assert has_no_processor(folder)
    for file in folder.iterdir():
        file.unlink()
    assert has_no_processor(folder)


def test_it_is_vllms_own_function_that_is_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own = hf._try_get_processor_chat_template
    monkeypatch.setattr(hf, "_try_get_processor_chat_template", getattr(own, "__wrapped__", own))
    register()
    register()
    wrapped = hf._try_get_processor_chat_template
    assert wrapped.__wrapped__ is getattr(own, "__wrapped__", own)
