"""A worker takes the tokenizer of a converted GGUF from tokenizer.json, whatever transformers has for its type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllama.store.gguf.tokenizer import write_tokenizer
from vllama.worker.tokenizer_class import heeding

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

DECOMPOSED = "e\u0301"
"""An accented letter in two characters, which Qwen 2's class in transformers would join."""


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """The tokenizer of a GGUF of Qwen 2's type, as far as it is needed for one text."""
    letters = ["e", "Ì", "ģ", "Ã", "©"]
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*letters, "<|endoftext|>"],
        "tokenizer.ggml.token_type": [1] * len(letters) + [3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": len(letters),
    }
    write_tokenizer(keys, tmp_path, 64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return tmp_path


def ids(tokenizer: Any) -> list[int]:
    found: list[int] = tokenizer(DECOMPOSED)["input_ids"]
    return found


def test_a_converted_tokenizer_is_read_as_it_is_written(snapshot: Path) -> None:
    from transformers import AutoTokenizer

    load = heeding(AutoTokenizer.from_pretrained)
    assert ids(load(str(snapshot), trust_remote_code=False, config=None)) == [0, 1, 2]


def test_other_tokenizers_are_left_to_transformers(snapshot: Path) -> None:
    asked = []
    path = snapshot / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"tokenizer_class": "Qwen2Tokenizer"}))
    heeding(lambda *positional, **named: asked.append((positional, named)))(str(snapshot), use_fast=True)
    heeding(lambda *positional, **named: asked.append((positional, named)))("org/name")
    assert asked == [((str(snapshot),), {"use_fast": True}), (("org/name",), {})]
