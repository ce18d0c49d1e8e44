"""A GGUF file's tokenizer as `tokenizers` (Hugging Face) reads it: the same token ids as llama.cpp's for every text.

Each kind of vocabulary (`tokenizer.ggml.model`) is one function of `_KINDS`, after `llama_vocab::impl::tokenize` and
the sessions that it calls in llama.cpp (src/llama-vocab.cpp). Text inside special tokens is found first, in raw text.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllama.errors import StoreError
from vllama.store.gguf.pre_tokenizers import PreTokenizer, pre_tokenizer_of
from vllama.store.gguf.special_tokens import SpecialTokens, read_special_tokens
from vllama.store.gguf.vocabulary import SPECIAL, Kind, Vocabulary, read_vocabulary

_SPACE = "▁"
"""The character that stands for a space in vocabularies of SentencePiece."""

_LONGEST_WORD = 256
"""Characters of a word beyond which WordPiece gives it up: `tokenizers` needs a time that grows with their cube."""

_LARGEST_CHARACTER_MAP = 1 << 24

_KOREAN_SYLLABLES, _SYLLABLES_OF_A_CONSONANT, _KOREAN_LEADING, _KOREAN_CONSONANTS = 0xAC00, 588, 0x1100, 19
"""Where the syllables and their leading consonants are in Unicode, and their numbers."""

_BLANKS_BEFORE_A_TAG = re.compile(r"\A[ \t]+(?=\{[%#])")
"""Blanks that transformers leaves out at the beginning of a line of a chat template."""

Json = dict[str, Any]


def write_tokenizer(
    keys: Mapping[str, Any], destination: Path, context_length: int, tokens: Mapping[str, str] | None = None
) -> tuple[int, ...]:
    """Write tokenizer.json, tokenizer_config.json and the chat templates to a directory.

    `keys` are those of the GGUF file, `context_length` is in tokens. `tokens` are tokens with a meaning for the model's
    processor of images, by their names ("image_token"). The same keys give the same bytes. Returns the ids
    of the tokens that end a reply. Raises StoreError if the file has no tokenizer, one that is damaged, or one of an
    unknown kind.
    """
    tokenizer, special, vocabulary = build_tokenizer(keys)
    _check(tokenizer)
    _write(destination / "tokenizer.json", tokenizer)
    config = _configuration(special, vocabulary, context_length)
    if tokens:
        config["extra_special_tokens"] = dict(tokens)
    _write(destination / "tokenizer_config.json", config)
    for name, template in _chat_templates(keys, special, vocabulary):
        path = destination / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")
    return vocabulary.ends


def build_tokenizer(keys: Mapping[str, Any]) -> tuple[Json, SpecialTokens, Vocabulary]:
    """Return the content of tokenizer.json, and what it was made of. Raises StoreError."""
    vocabulary = read_vocabulary(keys)
    if vocabulary.model not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise StoreError(f"cannot rebuild a tokenizer of kind {vocabulary.model[:80]!r}; supported: {known}")
    splits = vocabulary.model in _SPLIT_INTO_WORDS
    special = read_special_tokens(keys, vocabulary, pre_tokenizer_of(keys) if splits else None)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(keys, vocabulary)),
        **_KINDS[vocabulary.model](keys, vocabulary, special),
        "post_processor": _post_processor(special, vocabulary),
    }
    return tokenizer, special, vocabulary


def _check(tokenizer: Json) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(json.dumps(tokenizer))
    except Exception as error:
        raise StoreError(f"the tokenizer of the GGUF file does not fit together: {error}") from error


def _write(path: Path, record: Json) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _byte_level_bpe(keys: Mapping[str, Any], vocabulary: Vocabulary, special: SpecialTokens) -> Json:
    rule = pre_tokenizer_of(keys)
    if rule.is_raw:
        return _raw_bpe(keys, vocabulary, special)
    return {
        "normalizer": None,
        "pre_tokenizer": _sequence([*_splits(rule), _byte_level()]),
        "model": _bpe(vocabulary, vocabulary.merges, ignore_merges=rule.ignores_merges),
        "decoder": _byte_level(),
    }


def _raw_bpe(keys: Mapping[str, Any], vocabulary: Vocabulary, special: SpecialTokens) -> Json:
    """Return BPE on the lines of a text, with "▁" for spaces and bytes for unknown characters."""
    del special
    return {
        "normalizer": _replace(" ", _SPACE),
        "pre_tokenizer": _sequence(_splits(pre_tokenizer_of(keys))),
        "model": _bpe(vocabulary, vocabulary.merges, byte_fallback=True),
        "decoder": _sentencepiece_decoder(strip=False),
    }


def _score_ordered_bpe(keys: Mapping[str, Any], vocabulary: Vocabulary, special: SpecialTokens) -> Json:
    """Return BPE without merges of its own: the pair whose joint token has the highest score is merged first."""
    prefix = keys.get("tokenizer.ggml.add_space_prefix", True) is not False
    normalizers = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    unknown = vocabulary.tokens[special.unknown] if special.unknown is not None else None
    merges = _merges_by_score(vocabulary)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers, _replace(" ", _SPACE)]},
        "pre_tokenizer": None,
        "model": _bpe(vocabulary, merges, byte_fallback=True, unk_token=unknown, fuse_unk=True),
        "decoder": _sentencepiece_decoder(strip=prefix),
    }


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return all pairs of tokens that join to a token, in the order in which llama.cpp merges them.

    Among equal scores the leftmost pair goes first. Such tokens are runs of one character: the left one grows while it
    can, so longer tokens go first and, for one token, the pair whose left half is longer.
    """
    ids = vocabulary.ids
    pairs = [
        (-vocabulary.scores[number], -len(token), -cut, token)
        for token, number in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [(token[:-cut], token[-cut:]) for _, _, cut, token in sorted(pairs)]


def _word_piece(keys: Mapping[str, Any], vocabulary: Vocabulary, special: SpecialTokens) -> Json:
    """Return WordPiece. GGUF marks the tokens that begin a word, `tokenizers` those that do not."""

    def marked(token: str, kind: Kind) -> str:
        if kind in SPECIAL:
            return token
        return token[len(_SPACE) :] if token.startswith(_SPACE) else f"##{token}"

    pieces = {
        marked(*item): number for number, item in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    }
    if len(pieces) < len(vocabulary.tokens) or special.unknown is None:
        raise StoreError("the WordPiece vocabulary of the GGUF file has no unknown token, or one piece twice")
    return {
        "normalizer": {"type": "Sequence", "normalizers": list(_bert_normalizers(keys))},
        "pre_tokenizer": _sequence([_split(r"\p{P}"), {"type": "BertPreTokenizer"}]),
        "model": {
            "type": "WordPiece",
            "unk_token": vocabulary.tokens[special.unknown],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": _LONGEST_WORD,
            "vocab": pieces,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
    }


def _bert_normalizers(keys: Mapping[str, Any]) -> Iterator[Json]:
    """Yield BERT's normalizer, and before it what llama.cpp does differently (`llm_tokenizer_wpm_session::preprocess`).

    Its decomposition keeps the first character only, which of a Korean syllable is the leading consonant.
    """
    lowercase = keys.get("tokenizer.ggml.normalizer.lowercase", True) is not False
    strips_accents = keys.get("tokenizer.ggml.normalizer.strip_accents", lowercase) is not False
    yield _replace_all(r"[\x0b\x0c\x{85}]", " ")
    yield _replace_all(r"\p{Cf}", "")
    if strips_accents:
        yield _replace_all(r"\p{M}", "")
        for number in range(_KOREAN_CONSONANTS):
            first = _KOREAN_SYLLABLES + number * _SYLLABLES_OF_A_CONSONANT
            last = first + _SYLLABLES_OF_A_CONSONANT - 1
            yield _replace_all(f"[{chr(first)}-{chr(last)}]", chr(_KOREAN_LEADING + number))
    yield {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": strips_accents,
        "lowercase": lowercase,
    }


def _unigram(keys: Mapping[str, Any], vocabulary: Vocabulary, special: SpecialTokens) -> Json:
    prefix = keys.get("tokenizer.ggml.add_space_prefix", False) is True
    merges_spaces = keys.get("tokenizer.ggml.remove_extra_whitespaces", False) is True
    normalizers: list[Json] = list(_character_map(keys))
    if merges_spaces:
        normalizers += [_replace_all(r"\A +| +\z", ""), _replace_all(" {2,}", " ")]
    if prefix or merges_spaces:
        normalizers.append({"type": "Prepend", "prepend": _SPACE})
    normalizers.append(_replace(" ", _SPACE))
    if special.unknown is None:
        raise StoreError("the unigram vocabulary of the GGUF file has no unknown token")
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "model": {
            "type": "Unigram",
            "unk_id": special.unknown,
            "vocab": list(zip(vocabulary.tokens, _unigram_scores(vocabulary), strict=True)),
            "byte_fallback": False,
        },
        "decoder": _sentencepiece_decoder(strip=prefix),
    }


def _unigram_scores(vocabulary: Vocabulary) -> Iterator[float]:
    """Yield the scores. The unknown token costs 10 more than the least likely normal one, as `tokenizers` has it."""
    lowest = min(
        (score for score, kind in zip(vocabulary.scores, vocabulary.kinds, strict=True) if kind is Kind.NORMAL),
        default=0.0,
    )
    for score, kind in zip(vocabulary.scores, vocabulary.kinds, strict=True):
        yield 0.0 if kind is Kind.USER_DEFINED else score if kind is Kind.NORMAL else max(score, lowest)


def _character_map(keys: Mapping[str, Any]) -> Iterator[Json]:
    """Yield the normalizer of SentencePiece's compiled map of characters, if the file has one."""
    stated = keys.get("tokenizer.ggml.precompiled_charsmap")
    if stated is None:
        return
    if not isinstance(stated, list) or len(stated) > _LARGEST_CHARACTER_MAP:
        raise StoreError(
            "the key tokenizer.ggml.precompiled_charsmap of the GGUF file is not a list of bytes, or too long"
        )
    data = bytes(number & 0xFF for number in stated)
    if len(data) < 4 or int.from_bytes(data[:4], "little") + 4 >= len(data):
        raise StoreError("the character map of the GGUF file is truncated")
    yield {"type": "NFC"}  # `tokenizers` applies the map to short sequences of characters only
    yield {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


_KINDS = {
    "gpt2": _byte_level_bpe,
    "gemma4": _raw_bpe,
    "llama": _score_ordered_bpe,
    "bert": _word_piece,
    "t5": _unigram,
}
_SPLIT_INTO_WORDS = ("gpt2", "gemma4")


def _bpe(vocabulary: Vocabulary, merges: Any, **options: Any) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _splits(rule: PreTokenizer) -> list[Json]:
    return [_split(pattern) for pattern in rule.patterns]


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level() -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _sequence(parts: list[Json]) -> Json:
    return {"type": "Sequence", "pretokenizers": parts}


def _replace(text: str, by: str) -> Json:
    return {"type": "Replace", "pattern": {"String": text}, "content": by}


def _replace_all(pattern: str, by: str) -> Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": by}


def _sentencepiece_decoder(*, strip: bool) -> Json:
    """Return the decoder; `strip` removes the space that the normalizer put before the text."""
    decoders: list[Json] = [_replace(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if strip:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": decoders}


def _added_tokens(keys: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[Json]:
    """Yield the tokens whose text is found in a prompt before everything else."""
    left, right = _swallowing(keys, vocabulary)
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if kind in SPECIAL:
            yield {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": token in left,
                "rstrip": token in right,
                "normalized": False,
                "special": kind is not Kind.USER_DEFINED,
            }


def _swallowing(keys: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[frozenset[str], frozenset[str]]:
    """Return the tokens that swallow the blanks before them, and those that swallow the blanks after them.

    GGUF has no key for it, so llama.cpp goes by names (the end of `llama_vocab::impl::load`).
    """
    name, pre = str(keys.get("general.name", "")).lower(), str(keys.get("tokenizer.ggml.pre", ""))
    architecture = str(keys.get("general.architecture", ""))
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        return frozenset({"<mask>"}), frozenset()
    if "phi-3" in name or "phi3" in name:
        special = {token for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind in SPECIAL}
        return frozenset(), frozenset(special - {"<unk>", "<s>", "<|endoftext|>"})
    if "modern-bert" in name:
        return frozenset({"[MASK]"}), frozenset()
    return frozenset(), frozenset()


def _post_processor(special: SpecialTokens, vocabulary: Vocabulary) -> Json:
    """Return the processor that puts special tokens around each text."""

    def around(sequence: str, type_id: int) -> list[Json]:
        def tokens(ids: tuple[int, ...]) -> list[Json]:
            return [{"SpecialToken": {"id": vocabulary.tokens[number], "type_id": type_id}} for number in ids]

        return [*tokens(special.before), {"Sequence": {"id": sequence, "type_id": type_id}}, *tokens(special.after)]

    second = around("B", 1)
    if vocabulary.model == "bert":
        second = second[len(special.before) :]
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *second],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for number in sorted({*special.before, *special.after})
            for token in (vocabulary.tokens[number],)
        },
    }


def _configuration(special: SpecialTokens, vocabulary: Vocabulary, context_length: int) -> Json:
    named = {
        "bos_token": special.bos,
        "eos_token": special.eos,
        "unk_token": special.unknown,
        "sep_token": special.separator,
        "pad_token": special.padding,
        "mask_token": special.mask,
    }
    if vocabulary.model == "bert":
        named = {"cls_token": named.pop("bos_token"), **named}
    config: Json = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "tokenizer_class": "TokenizersBackend",
        **{name: vocabulary.tokens[number] for name, number in named.items() if number is not None},
    }
    if vocabulary.model != "bert":
        config |= {"add_bos_token": bool(special.before), "add_eos_token": bool(special.after)}
    return dict(sorted(config.items()))


def _chat_templates(
    keys: Mapping[str, Any], special: SpecialTokens, vocabulary: Vocabulary
) -> Iterator[tuple[str, str]]:
    """Yield the paths and texts of the chat templates; with BOS where llama.cpp adds it and a template has none."""

    def with_bos(template: str) -> str:
        texts = ("bos_token", *(vocabulary.tokens[number] for number in special.before))
        if not special.before or any(text in template for text in texts):
            return template
        return "{{ bos_token }}" + _BLANKS_BEFORE_A_TAG.sub("", template)

    template = keys.get("tokenizer.chat_template")
    if isinstance(template, str):
        yield "chat_template.jinja", with_bos(template)
    names = keys.get("tokenizer.chat_templates")
    for name in names if isinstance(names, list) else ():
        named = keys.get(f"tokenizer.chat_template.{name}")
        if isinstance(name, str) and name.isidentifier() and isinstance(named, str):
            yield f"additional_chat_templates/{name}.jinja", with_bos(named)
