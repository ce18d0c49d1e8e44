"""A GGUF file's tokenizer gives the token ids of llama.cpp, with the special tokens that it adds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from llama_cpp_sources import NAMES, keys, recorded
from tokenizers import Tokenizer

from vllama.errors import StoreError
from vllama.store.gguf.conversion import end_replies_at
from vllama.store.gguf.tokenizer import build_tokenizer, write_tokenizer
from vllama.store.gguf.vocabulary import Kind, read_vocabulary

RECORDED = json.loads((Path(__file__).parent / "llama_cpp_token_ids.json").read_bytes())
"""Ids of more texts, special tokens around and inside them included, from llama.cpp of llama-cpp-python 0.3.36."""

SMALL = ("bert-bge", "deepseek-coder", "phi-3")
"""Vocabularies that are read in a second; the others only in the full run."""

EACH = [
    pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in sorted({*NAMES, "nomic-bert-moe"})
]


@cache
def real(name: str) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(build_tokenizer(keys(name))[0]))


@pytest.mark.parametrize("name", [case for case in EACH if case.values[0] in NAMES])
def test_the_texts_of_llama_cpp_s_tests_have_its_ids(name: str) -> None:
    texts = recorded(name)
    assert len(texts) >= 46
    assert [real(name).encode(text, add_special_tokens=False).ids for text, _ in texts] == [ids for _, ids in texts]


@pytest.mark.parametrize("name", EACH)
def test_other_texts_have_the_ids_of_llama_cpp_with_its_special_tokens(name: str) -> None:
    found = {text: real(name).encode(text).ids for text in RECORDED["texts"]}
    assert found == dict(zip(RECORDED["texts"], RECORDED["ids"][name], strict=True))


def gguf_keys(model: str, *tokens: str, special: dict[str, Kind] | None = None, **more: Any) -> dict[str, Any]:
    """Return keys of a small vocabulary; names in `more` are short for `tokenizer.ggml.…`."""
    special = special or {}
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": [*tokens, *special],
        "tokenizer.ggml.token_type": [Kind.NORMAL.value] * len(tokens) + [kind.value for kind in special.values()],
        **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
    }


BYTES = [f"<0x{number:02X}>" for number in range(256)]
MARKS = {"<unk>": Kind.UNKNOWN, "<s>": Kind.CONTROL, "</s>": Kind.CONTROL}


def sentencepiece(*tokens: str, scores: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    made = gguf_keys("llama", *tokens, *BYTES, special=MARKS, bos_token_id=len(tokens) + 257, **more)
    listed = made["tokenizer.ggml.tokens"]
    return {
        **made,
        "tokenizer.ggml.eos_token_id": listed.index("</s>"),
        "tokenizer.ggml.unknown_token_id": listed.index("<unk>"),
        "tokenizer.ggml.scores": [(scores or {}).get(token, 0.0) for token in listed],
    }


def byte_level(**more: Any) -> dict[str, Any]:
    return gguf_keys(
        "gpt2", "a", "b", "ab", special={"<|bos|>": Kind.CONTROL, "<|eos|>": Kind.CONTROL}, merges=["a b"],
        **{"bos_token_id": 3, "eos_token_id": 4, **more},
    )  # fmt: skip


def tokens(made: dict[str, Any], text: str) -> list[str]:
    found: list[str] = Tokenizer.from_str(json.dumps(build_tokenizer(made)[0])).encode(text).tokens
    return found


@pytest.mark.parametrize(
    ("made", "whole"),
    [
        (byte_level(), ["ab"]),
        (byte_level(pre="llama-bpe"), ["<|bos|>", "ab"]),
        (byte_level(pre="tekken", add_bos_token=False), ["ab"]),
        (byte_level(add_bos_token=True, add_eos_token=True), ["<|bos|>", "ab", "<|eos|>"]),
        (byte_level(pre="gemma4", add_bos_token=False), ["<|bos|>", "ab"]),
        (sentencepiece("▁", "a", "b", "▁a"), ["<s>", "▁a", "b"]),
        (sentencepiece("▁", "a", "b", "▁a", add_space_prefix=False), ["<s>", "a", "b"]),
        (sentencepiece("▁", "a", "b", add_bos_token=False, add_eos_token=True), ["▁", "a", "b", "</s>"]),
    ],
)
def test_special_tokens_are_added_by_the_file_s_keys_or_the_defaults_of_its_kind(
    made: dict[str, Any], whole: list[str]
) -> None:
    assert tokens(made, "ab") == whole


def test_a_bert_has_its_special_tokens_whatever_the_file_says() -> None:
    special = {"[UNK]": Kind.UNKNOWN, "[CLS]": Kind.CONTROL, "[SEP]": Kind.CONTROL}
    made = gguf_keys(
        "bert", "▁a", "b", special=special, unknown_token_id=2, bos_token_id=3, seperator_token_id=4,
        add_bos_token=False, add_sep_token=False,
    )  # fmt: skip
    assert tokens(made, "Ab a c") == ["[CLS]", "a", "##b", "a", "[UNK]", "[SEP]"]


def test_a_token_to_add_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StoreError, match="adds the bos token to every text but does not have one"):
        build_tokenizer(byte_level(pre="glm4", bos_token_id=99, add_bos_token=True))


def test_pairs_are_merged_in_the_order_of_the_scores_of_what_they_make() -> None:
    made = sentencepiece("a", "b", "c", "ab", "bc", scores={"ab": -2.0, "bc": -1.0}, add_space_prefix=False)
    assert tokens(made, "abc") == ["<s>", "a", "bc"]


def test_runs_of_equal_scores_grow_from_the_left() -> None:
    runs = ("a", "aa", "aaa", "aaaa")
    made = sentencepiece(*runs, scores=dict.fromkeys(runs, -1e9), add_space_prefix=False)
    assert tokens(made, "a" * 7) == ["<s>", "aaaa", "aaa"]


def test_characters_beyond_the_vocabulary_become_bytes() -> None:
    assert tokens(sentencepiece("a", add_space_prefix=False), "aé") == ["<s>", "a", "<0xC3>", "<0xA9>"]


def test_every_text_between_special_tokens_begins_with_a_space() -> None:
    assert tokens(sentencepiece("▁", "a", "▁a"), "a</s>a") == ["<s>", "▁a", "</s>", "▁a"]


def test_some_tokens_are_special_by_their_text() -> None:
    vocabulary = read_vocabulary(gguf_keys("gpt2", "a", "<|im_end|>", "<|fim_prefix|>", "<|channel|>", "[PAD]"))
    assert vocabulary.kinds == (Kind.NORMAL, Kind.CONTROL, Kind.CONTROL, Kind.USER_DEFINED, Kind.CONTROL)
    assert vocabulary.ends == (1, 4)


def test_replies_end_at_every_token_at_which_llama_cpp_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    end_replies_at(write_tokenizer(gguf_keys("gpt2", "a", "<|im_end|>", "<|endoftext|>"), tmp_path, 9), path)
    assert json.loads(path.read_bytes()) == {"bos_token_id": 1, "eos_token_id": [1, 2]}
    end_replies_at((), path)
    assert json.loads(path.read_bytes())["eos_token_id"] == [1, 2]


def test_a_token_that_ends_replies_elsewhere_does_not_in_gpt_oss() -> None:
    vocabulary = read_vocabulary(gguf_keys("gpt2", "<|end|>", "<|return|>", "<|call|>", eos_token_id=1))
    assert vocabulary.ends == (1, 2)
    assert vocabulary.kinds[0] is Kind.USER_DEFINED


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer.ggml.model": "gpt2"}, "no tokens"),
        (gguf_keys("rwkv", "a"), "cannot rebuild a tokenizer of kind 'rwkv'; supported: bert, gemma4, gpt2, llama, t5"),
        (gguf_keys("gpt2", "a", "a"), "1 tokens more than once"),
        (gguf_keys("gpt2", "a" * 1025), "too long"),
        (gguf_keys("gpt2", "a", merges=["ab"]), "a merge without two halves"),
        (gguf_keys("gpt2", "a", merges=["a b"]), "does not fit together"),
        (gguf_keys("llama", "a", scores=[float("nan")]), "not a finite number"),
        ({**gguf_keys("llama", "a", "b"), "tokenizer.ggml.token_type": [1]}, "1 numbers for 2 tokens"),
        ({**gguf_keys("llama", "a"), "tokenizer.ggml.tokens": [1]}, "not a list of texts"),
        (
            gguf_keys("t5", "a", "b", unknown_token_id=0, add_eos_token=False, precompiled_charsmap=[255] * 5),
            "truncated",
        ),
    ],
)
def test_a_damaged_vocabulary_is_refused_with_the_reason(made: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=why):
        write_tokenizer(made, tmp_path, 1024)


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{{ bos_token }}{{ messages }}", "{{ bos_token }}{{ messages }}"),
        ("<|bos|>{{ messages }}", "<|bos|>{{ messages }}"),
        ("  {% if x %}", "{{ bos_token }}{% if x %}"),
        ("hi {{ messages }}", "{{ bos_token }}hi {{ messages }}"),
    ],
)
def test_a_chat_template_without_bos_gets_it_where_llama_cpp_adds_it(
    template: str, written: str, tmp_path: Path
) -> None:
    made = {**byte_level(add_bos_token=True), "tokenizer.chat_template": template}
    write_tokenizer(made, tmp_path, 1024)
    assert (tmp_path / "chat_template.jinja").read_text() == written


def test_other_chat_templates_are_written_as_they_are(tmp_path: Path) -> None:
    named = {"tokenizer.chat_templates": ["tool_use", "../x"], "tokenizer.chat_template.tool_use": "{{ tools }}"}
    write_tokenizer({**byte_level(), "tokenizer.chat_template": "{{ messages }}", **named}, tmp_path, 1024)
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
    assert [path.name for path in (tmp_path / "additional_chat_templates").iterdir()] == ["tool_use.jinja"]


def test_the_same_keys_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tokenizer(sentencepiece("▁", "a", "▁a"), tmp_path / name, 1024)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_bytes())
    assert (config["bos_token"], config["add_bos_token"], config["model_max_length"]) == ("<s>", True, 1024)
