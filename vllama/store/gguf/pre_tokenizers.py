"""The pre-tokenizers that GGUF files name, as rules that split text into words.

One entry for each name that llama.cpp knows (`llama_vocab::impl::load` and `llm_tokenizer_bpe` in src/llama-vocab.cpp).
Its regular expressions run one after the other, each on the pieces that the one before it left. Some of them are a
program there (src/unicode.cpp); here they are written for Oniguruma, with which `tokenizers` splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllama.errors import StoreError


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text becomes words, and what follows from the name for the rest of the tokenizer.

    `ignores_merges`: a word that is a token becomes that token, whatever the merges would make of it. `adds_bos` is the
    default where the file has no key for it; `always_adds_bos` overrules the key. `is_raw`: words are text with "▁" for
    spaces, not bytes written as characters.
    """

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False
    always_adds_bos: bool = False
    is_raw: bool = False


_UNNAMED = {"mistral3": "tekken", "qwen25vl": "qwen2"}
"""The pre-tokenizers of architectures whose files by Ollama do not always name it."""


def pre_tokenizer_of(keys: Mapping[str, Any]) -> PreTokenizer:
    """Return the pre-tokenizer that the file names. Raises StoreError for an unknown name."""
    name = "gemma4" if keys.get("tokenizer.ggml.model") == "gemma4" else keys.get("tokenizer.ggml.pre") or "default"
    if name == "default":
        name = _UNNAMED.get(str(keys.get("general.architecture")), name)
    if name not in BY_NAME:
        raise StoreError(f"the GGUF file splits text by the pre-tokenizer {str(name)[:80]!r}, which is unknown")
    return BY_NAME[name]


_CONTRACTIONS = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LINES = r"[^\n]+|[\n]+"
_CJK = "[\u4e00-\u9fa5\u3040-\u30ff]+"
_DEEPSEEK_CJK = "[[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]&&[^\\s]]+"
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_UPPER_OR_MARK, _LOWER_OR_MARK = r"[[\p{L}\p{M}]&&[^a-z]]", r"[[\p{L}\p{M}]&&[^A-Z]]"
_PUNCTUATED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
)
_THREES_FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_HAN = r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"


def _cased(upper: str, lower: str, end: str) -> str:
    """Return words with an uppercase beginning and a lowercase rest, or the reverse, with an optional `end`."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{upper}*{lower}+{end}|{before}{upper}+{lower}*{end}"


def _llama3(numbers: str) -> str:
    return f"{_CONTRACTIONS}|{_WORD}|{numbers}|{_SYMBOLS}|{_BLANKS}"


_GPT4O_REST = rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
_OPTIONAL_CONTRACTION = f"(?:{_CONTRACTIONS})?"
_ANY_LETTERS = r"[\p{L}\p{M}]"

_LLAMA_3 = _llama3(r"\p{N}{1,3}")
_QWEN_2 = _llama3(r"\p{N}")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_SENTENCES = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_LETTERS_OF_DEEPSEEK_LLM = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

_DEEPSEEK_LLM = (
    "[\r\n]",
    rf"\s?[{_LETTERS_OF_DEEPSEEK_LLM}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+",
    r"\s+\z",
    _DEEPSEEK_CJK,
    r"\p{N}+",
)
_YOUTU_CJK = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u30ff]+"
)
_AFMOE_CJK = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff"
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU = (
    rf"{_cased(_ANY_LETTERS, _ANY_LETTERS, _OPTIONAL_CONTRACTION)}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)
_QWEN_35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
)
_BAILING_MOE = rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_SYMBOLS}|\s*[\r\n]|\s+(?!\S)|\s+"
_KIMI_K2 = (
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_OPTIONAL_CONTRACTION}"
    rf"|\p{{N}}{{1,3}}|{_SYMBOLS}|{_BLANKS}"
)
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_JAIS_2 = f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}{{1,3}}|{_SYMBOLS}|\\s*[\\r\\n]+|" + "".join(
    rf"\s{{{count}}}(?!\S)|" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")
)

_RULES: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", PreTokenizer(_DEFAULT)),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((_LLAMA_3,), ignores_merges=True, adds_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", PreTokenizer((_LLAMA_3,))),
    ("glm4 glm5", PreTokenizer((_LLAMA_3,), ignores_merges=True)),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", _llama3(r"\p{N}+")), ignores_merges=True)),
    ("jais-2", PreTokenizer((_JAIS_2 + r"\s",))),
    ("deepseek-llm", PreTokenizer(_DEEPSEEK_LLM)),
    ("deepseek-coder", PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"))),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        PreTokenizer((r"\p{N}{1,3}", _CJK, rf"{_PUNCTUATED}[\r\n]*|{_BLANKS}")),
    ),
    ("spark2_5", PreTokenizer((r"\p{N}{1,3}", _CJK, rf"{_PUNCTUATED}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"))),
    ("youtu", PreTokenizer((_YOUTU_CJK, _YOUTU), ignores_merges=True)),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", PreTokenizer((r"\p{N}", _GPT2))),
    ("gpt-2 phi-2 mpt olmo jais trillion exaone4 granite-docling gigachat a.x-4.0 mellum", PreTokenizer((_GPT2,))),
    ("jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code modern-bert roberta-bpe", PreTokenizer((_GPT2,))),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2",
        PreTokenizer((_QWEN_2,)),
    ),
    ("qwen35", PreTokenizer((_QWEN_35,))),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_SENTENCES,))),
    ("viking", PreTokenizer((_SENTENCES, r"\p{N}"))),
    (
        "tekken",
        PreTokenizer(
            (rf"{_cased(_UPPER, _LOWER, '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}",),
            ignores_merges=True,
            adds_bos=True,
        ),
    ),
    (
        "chameleon",
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "IMGIMG[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            adds_bos=True,
        ),
    ),
    (
        "gpt-4o llama4 kanana2 talkie minimax-m2",
        PreTokenizer((f"{_cased(_UPPER, _LOWER, _OPTIONAL_CONTRACTION)}|{_GPT4O_REST}",)),
    ),
    (
        "granite-embed-multi-97m",
        PreTokenizer(
            (f"{_cased(_UPPER_OR_MARK, _LOWER_OR_MARK, _OPTIONAL_CONTRACTION)}|{_GPT4O_REST}",), ignores_merges=True
        ),
    ),
    (
        "tiny_aya cohere2moe",
        PreTokenizer(
            (
                _THREES_FROM_THE_RIGHT,
                f"{_cased(_ANY_LETTERS, _ANY_LETTERS, _OPTIONAL_CONTRACTION)}|{_GPT4O_REST}",
            )
        ),
    ),
    ("kimi-k2", PreTokenizer((_KIMI_K2,))),
    ("superbpe", PreTokenizer((r"\p{N}+", "(?=(?:[0-9]{3})+(?![0-9]))"))),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenizer((_BAILING_MOE,))),
    (
        "seed-coder",
        PreTokenizer((rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}",)),
    ),
    ("ufakzeka", PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_BLANKS}",))),
    ("afmoe", PreTokenizer((_THREES_FROM_THE_RIGHT, _AFMOE_CJK, rf"{_PUNCTUATED}[\r\n]*|{_BLANKS}"))),
    ("laguna", PreTokenizer((_LINES, _QWEN_2))),
    ("exaone-moe", PreTokenizer((_EXAONE_MOE,))),
    ("gemma4 granite-embed-multi-311m", PreTokenizer((_LINES,), always_adds_bos=True, is_raw=True)),
    ("sarvam-moe", PreTokenizer((_LINES,), is_raw=True)),
)

BY_NAME: Mapping[str, PreTokenizer] = {name: rule for names, rule in _RULES for name in names.split()}
"""Pre-tokenizers by the names in `tokenizer.ggml.pre`."""
