"""Text is split into words as llama.cpp splits it.

`llama_cpp_words.json` has the words that the llama.cpp of llama-cpp-python 0.3.36 made.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from vllama.errors import StoreError
from vllama.store.gguf.pre_tokenizers import BY_NAME, pre_tokenizer_of

RECORDED = json.loads((Path(__file__).parent / "llama_cpp_words.json").read_bytes())
TEXTS, WORDS = RECORDED["texts"], RECORDED["words"]


def words(name: str, text: str) -> list[str]:
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in BY_NAME[name].patterns]
    return [word for word, _ in pre_tokenizers.Sequence(parts).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", WORDS)
def test_texts_become_the_words_that_llama_cpp_makes(name: str) -> None:
    assert {text: words(name, text) for text in TEXTS} == dict(zip(TEXTS, WORDS[name], strict=True))


def test_every_rule_is_recorded() -> None:
    assert {BY_NAME[name] for name in WORDS} == {rule for rule in BY_NAME.values() if not rule.is_raw}


def test_raw_vocabularies_split_text_at_line_ends_only() -> None:
    assert words("gemma4", "a b\n\n\nc d") == ["a b", "\n\n\n", "c d"]


def test_an_unknown_pre_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match="by the pre-tokenizer 'gpt-9', which is unknown"):
        pre_tokenizer_of({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-9"})


def test_a_file_without_the_key_has_the_default_of_llama_cpp() -> None:
    assert pre_tokenizer_of({"tokenizer.ggml.model": "gpt2"}) is BY_NAME["default"]


@pytest.mark.parametrize("name", ["llama-bpe", "tekken", "glm4", "falcon3", "lfm2", "pixtral"])
def test_words_that_are_tokens_need_no_merges_in_some(name: str) -> None:
    assert BY_NAME[name].ignores_merges
