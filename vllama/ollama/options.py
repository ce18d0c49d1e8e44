"""Types, defaults and precedence of `options` (contract §2.10).

Every row of the contract's table is here: options with an effect become fields of Sampling, others
are accepted without effect, and a wrong type is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllama.errors import OptionTypeError

log = logging.getLogger(__name__)

_EFFECTIVE = {
    "temperature": "float32",
    "top_k": "integer",
    "top_p": "float32",
    "min_p": "float32",
    "repeat_penalty": "float32",
    "repeat_last_n": "integer",
    "presence_penalty": "float32",
    "frequency_penalty": "float32",
    "seed": "integer",
    "num_predict": "integer",
    "num_ctx": "integer",
    "num_keep": "integer",
    "stop": "array",
}
# Accepted for compatibility with Ollama: vLLM sets these at startup, or has no such option.
_WITHOUT_EFFECT = {
    "typical_p": "float32",
    "num_batch": "integer",
    "num_gpu": "integer",
    "main_gpu": "integer",
    "use_mmap": "boolean",
    "num_thread": "integer",
    "draft_num_predict": "integer",
}
TYPES: Mapping[str, str] = _EFFECTIVE | _WITHOUT_EFFECT

DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": -1,
    "num_predict": -1,
    "num_ctx": 0,
    "num_keep": 4,
    "stop": (),
}

_mentioned: set[str] = set()


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling values in force for one request, with Ollama's names.

    `num_predict` ≤ 0 means until the model stops, `num_ctx` 0 the whole context, `seed` < 0 random; `num_keep` < 0
    keeps the whole beginning of a truncated prompt.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    seed: int
    num_predict: int
    num_ctx: int
    num_keep: int
    stop: tuple[str, ...]


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the effective options with their types. Raises OptionTypeError.

    `null` counts as absent, fractions of integers are cut off, unknown names are ignored and
    logged once.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        kind = TYPES.get(name)
        if kind is None:
            _mention(name)
            continue
        typed = _typed(name, kind, value)
        if name in _EFFECTIVE:
            checked[name] = typed
        elif name == "typical_p" and typed != 1.0:
            _mention(name)
    return checked


def resolve(checked: Mapping[str, Any], *defaults: Mapping[str, Any]) -> Sampling:
    """Merge checked options: earlier mappings take precedence, Ollama's defaults come last."""
    values = dict(DEFAULTS)
    for layer in (*reversed(defaults), checked):
        values.update(layer)
    return Sampling(**values)


def _typed(name: str, kind: str, value: Any) -> Any:
    if kind == "array":
        if isinstance(value, str):
            return (value,) if value else ()  # LiteLLM sends a bare string, which Ollama refuses
        if not isinstance(value, list | tuple):
            raise OptionTypeError(f'option "{name}" must be of type array')
        if not all(isinstance(item, str) for item in value):
            raise OptionTypeError(f'option "{name}" must be of an array of strings')
        return tuple(item for item in value if item)
    if kind == "boolean":
        if not isinstance(value, bool):
            raise OptionTypeError(f'option "{name}" must be of type boolean')
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f'option "{name}" must be of type {kind}')
    if kind == "float32":
        return float(value)
    return max(-(2**63), min(int(value), 2**63 - 1))  # the engine's protocol has no wider integers


def _mention(name: str) -> None:
    if name not in _mentioned and len(_mentioned) < 1000:
        _mentioned.add(name)
        log.warning("option %.100r has no effect", name)
