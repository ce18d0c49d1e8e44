"""The tokens that llama.cpp puts before and after a text, and those with a meaning of their own.

Rules of `llama_vocab::impl::load` and `llama_vocab::impl::tokenize` in llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllama.errors import StoreError
from vllama.store.gguf.pre_tokenizers import PreTokenizer
from vllama.store.gguf.vocabulary import Vocabulary, token_id


@dataclass(frozen=True, slots=True)
class _Defaults:
    """Defaults of a kind of vocabulary, for keys that the file lacks. None means that there is no such token."""

    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    separator: int | None = None
    padding: int | None = None
    mask: int | None = None
    adds_bos: bool = False
    adds_eos: bool = False


_DEFAULTS = {
    "llama": _Defaults(bos=1, eos=2, unknown=0, adds_bos=True),
    "gpt2": _Defaults(bos=11, eos=11),
    "gemma4": _Defaults(),
    "bert": _Defaults(bos=101, unknown=100, separator=102, padding=0, mask=103),
    "t5": _Defaults(eos=1, unknown=2, padding=0, adds_eos=True),
}

_NO_BOS = ("chatglm-bpe", "glm4", "glm5")
"""Pre-tokenizers whose vocabularies have no BOS unless the file names one."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens with a meaning of their own, None for those that the vocabulary lacks.

    `before` and `after` are the ids that stand around every text.
    """

    bos: int | None
    eos: int | None
    unknown: int | None
    separator: int | None
    padding: int | None
    mask: int | None
    before: tuple[int, ...]
    after: tuple[int, ...]


def read_special_tokens(
    keys: Mapping[str, Any], vocabulary: Vocabulary, pre_tokenizer: PreTokenizer | None
) -> SpecialTokens:
    """Return the special tokens of a vocabulary. `pre_tokenizer` is None for vocabularies that have none.

    Raises StoreError if a token that stands around every text does not exist.
    """
    defaults, count = _DEFAULTS[vocabulary.model], len(vocabulary.tokens)

    def named(name: str, default: int | None) -> int | None:
        stated = token_id(keys, name, count)
        return stated if stated is not None else default if default is not None and default < count else None

    no_bos = keys.get("tokenizer.ggml.pre") in _NO_BOS
    found = {
        "bos": named("bos", None if no_bos else defaults.bos),
        "eos": named("eos", defaults.eos),
        "unknown": named("unknown", defaults.unknown),
        "separator": named("seperator", defaults.separator),  # the key is spelled so
        "padding": named("padding", defaults.padding),
        "mask": named("mask", defaults.mask),
    }
    before, after = _around(keys, vocabulary.model, pre_tokenizer, defaults)
    for name in (*before, *after):
        if found[name] is None:
            raise StoreError(f"the GGUF file adds the {name} token to every text but does not have one")
    if vocabulary.model == "gpt2":  # the defaults are GPT-2's: real only where the file uses them
        for name in {"bos", "eos"} - {*before, *after}:
            found[name] = token_id(keys, name, count)
    return SpecialTokens(
        **found,
        before=tuple(number for name in before if (number := found[name]) is not None),
        after=tuple(number for name in after if (number := found[name]) is not None),
    )


def _around(
    keys: Mapping[str, Any], model: str, pre_tokenizer: PreTokenizer | None, defaults: _Defaults
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the tokens before and after every text."""
    if model == "bert":  # whatever the file says
        return ("bos",), ("separator",)
    adds_bos = _flag(keys, "bos", defaults.adds_bos or (pre_tokenizer is not None and pre_tokenizer.adds_bos))
    if pre_tokenizer is not None and pre_tokenizer.always_adds_bos:
        adds_bos = True
    return ("bos",) * adds_bos, ("eos",) * _flag(keys, "eos", defaults.adds_eos)


def _flag(keys: Mapping[str, Any], name: str, default: bool) -> bool:
    stated = keys.get(f"tokenizer.ggml.add_{name}_token")
    return stated if isinstance(stated, bool) else default
