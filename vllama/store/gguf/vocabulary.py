"""The vocabulary in the keys of a GGUF file, checked before it is believed.

Rules of `llama_vocab::impl::load` in llama.cpp (src/llama-vocab.cpp): empty tokens get a name, and the kind of some
tokens follows from their text rather than from `tokenizer.ggml.token_type`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

from vllama.errors import StoreError

_MOST_TOKENS, _MOST_MERGES, _LONGEST_TOKEN = 1 << 21, 1 << 22, 1 << 10
_SEPARATOR = " "
"""The character between the two halves of a merge."""


class Kind(IntEnum):
    """Values of `tokenizer.ggml.token_type` (gguf: `TokenType`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL = frozenset({Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED})
"""Kinds whose text is found in a prompt before everything else."""

_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
})  # fmt: skip
"""Texts of tokens that end a reply."""

_INFILL = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
                "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
                "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
                "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
"""Texts of tokens for fill in the middle, where the file has no key for them."""

_ENDING_INFILL = ("fim_pad", "fim_rep", "fim_sep")
_OLD_NAMES = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""Tokens of gpt-oss that are text of the reply."""

_NOT_AN_END = (
    ("<|end|>", ({"<|return|>", "<|call|>"}, {"<|return|>", "<|calls|>"}, {"<|call|>", "<|flush|>"},
                 {"<|calls|>", "<|flush|>"}), Kind.USER_DEFINED),
    ("</s>", ({"<|tool_response>"}, {"<|plamo:eos|>"}), Kind.NORMAL),
)  # fmt: skip
"""Tokens that end no reply if the vocabulary has all texts of one of these sets, and the kind that they have then."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with their kinds and scores, and the merges in the order of their rank.

    `model` is `tokenizer.ggml.model`. `ends` are the ids after which a reply is complete.
    """

    model: str
    tokens: tuple[str, ...]
    kinds: tuple[Kind, ...]
    scores: tuple[float, ...]
    merges: tuple[tuple[str, str], ...]
    ends: tuple[int, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        """The ids of the tokens."""
        return {token: number for number, token in enumerate(self.tokens)}


def read_vocabulary(keys: Mapping[str, Any]) -> Vocabulary:
    """Read the vocabulary. Raises StoreError if it is missing, damaged or implausible."""
    model = keys.get("tokenizer.ggml.model")
    if not isinstance(model, str):
        raise StoreError("the GGUF file has no tokenizer: the key tokenizer.ggml.model is missing")
    tokens = _tokens(keys)
    kinds = _kinds(keys, len(tokens))
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        raise StoreError(f"the GGUF file has {len(tokens) - len(ids)} tokens more than once")
    ends = _correct_kinds(keys, ids, kinds)
    return Vocabulary(model, tokens, tuple(kinds), _scores(keys, len(tokens)), _merges(keys), ends)


def token_id(keys: Mapping[str, Any], name: str, count: int) -> int | None:
    """Return the id in `tokenizer.ggml.{name}_token_id`; None if it is missing or not one of `count` ids."""
    stated = keys.get(f"tokenizer.ggml.{name}_token_id")
    return stated if isinstance(stated, int) and 0 <= stated < count else None


def _tokens(keys: Mapping[str, Any]) -> tuple[str, ...]:
    tokens = _texts(keys, "tokenizer.ggml.tokens", _MOST_TOKENS, _LONGEST_TOKEN)
    if not tokens:
        raise StoreError("the GGUF file has no tokens: the key tokenizer.ggml.tokens is missing or empty")
    return tuple(token or f"[EMPTY_{number}]" for number, token in enumerate(tokens))


def _kinds(keys: Mapping[str, Any], count: int) -> list[Kind]:
    stated = _numbers(keys, "tokenizer.ggml.token_type", count)
    known = {kind.value for kind in Kind}
    return [Kind(number) if number in known else Kind.NORMAL for number in stated] or [Kind.NORMAL] * count


def _scores(keys: Mapping[str, Any], count: int) -> tuple[float, ...]:
    scores = tuple(map(float, _numbers(keys, "tokenizer.ggml.scores", count)))
    if not all(map(math.isfinite, scores)):
        raise StoreError("the GGUF file has tokens whose score is not a finite number")
    return scores or (0.0,) * count


def _merges(keys: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the merges; a half may begin with a space, and the first of equal merges counts."""
    merges: dict[tuple[str, str], None] = {}
    for merge in _texts(keys, "tokenizer.ggml.merges", _MOST_MERGES, 2 * _LONGEST_TOKEN + 1):
        between = merge.find(_SEPARATOR, 1)
        if between < 0:
            raise StoreError(f"the GGUF file has a merge without two halves: {merge[:40]!r}")
        merges[merge[:between], merge[between + 1 :]] = None
    return tuple(merges)


def _texts(keys: Mapping[str, Any], name: str, most: int, longest: int) -> list[str]:
    texts = keys.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise StoreError(f"the key {name} of the GGUF file is not a list of texts")
    if len(texts) > most or any(len(text) > longest for text in texts):
        raise StoreError(
            f"the key {name} of the GGUF file is too long: over {most} texts, or {longest} characters in one"
        )
    return texts


def _numbers(keys: Mapping[str, Any], name: str, count: int) -> list[Any]:
    """Return the first `count` numbers of a list; none if the key is missing."""
    numbers = keys.get(name, [])
    if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
        raise StoreError(f"the key {name} of the GGUF file is not a list of numbers")
    if numbers and len(numbers) < count:
        raise StoreError(f"the key {name} of the GGUF file has {len(numbers)} numbers for {count} tokens")
    return numbers[:count]


def _correct_kinds(keys: Mapping[str, Any], ids: Mapping[str, int], kinds: list[Kind]) -> tuple[int, ...]:
    """Correct the kinds that follow from texts, and return the ids that end a reply."""

    def mark(number: int) -> None:
        if kinds[number] is not Kind.CONTROL:
            kinds[number] = Kind.CONTROL

    ends = set()
    for name, texts in _INFILL.items():
        number = _stated_infill(keys, name, len(kinds))
        if number is None and (found := [ids[text] for text in texts if text in ids]):
            mark(number := found[0])
        if number is not None and name in _ENDING_INFILL:
            ends.add(number)
    for text in _ENDS & ids.keys():
        mark(ids[text])
        ends.add(ids[text])
    for text in ids.keys() & set(_ALWAYS_SHOWN):
        kinds[ids[text]] = Kind.USER_DEFINED
    ends |= {number for name in ("eos", "eot", "eom") if (number := token_id(keys, name, len(kinds))) is not None}
    for text, sets, kind in _NOT_AN_END:
        if ids.get(text) in ends and any(others <= ids.keys() for others in sets):
            ends.discard(ids[text])
            kinds[ids[text]] = kind
    return tuple(sorted(ends))


def _stated_infill(keys: Mapping[str, Any], name: str, count: int) -> int | None:
    number = token_id(keys, name, count)
    if number is None and name in _OLD_NAMES:
        return token_id(keys, _OLD_NAMES[name], count)
    return number
