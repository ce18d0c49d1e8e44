"""Values without effect in requests of `/v1`: left out of the body for vLLM, and logged once (contract §5).

Ollama ignores these fields, or these values of them. vLLM would refuse the request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)

_MOST_MENTIONED = 1000

_mentioned: set[str] = set()


def mention(what: str) -> None:
    """Log, the first time, that something has no effect."""
    shown = what[:100]
    if shown not in _mentioned and len(_mentioned) < _MOST_MENTIONED:
        _mentioned.add(shown)
        log.warning("%s has no effect", shown)


def leave_out_unusable(body: dict[str, Any], *counts: str) -> None:
    """Remove values that vLLM would refuse of fields that Ollama does not read: they must not end a request.

    `counts` are further such fields, which are numbers from 0 on in this API.
    """
    for name, is_usable in {**_USABLE, **dict.fromkeys(counts, _is_count_or_none)}.items():
        if name in body and not is_usable(body[name]):
            del body[name]
            mention(f"this value of {name!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_count_or_none(value: Any) -> bool:
    return value == 0 or _is_count(value)


def _is_bias(value: Any) -> bool:
    return isinstance(value, dict) and all(
        token.isascii() and token.isdigit() and isinstance(bias, int | float) for token, bias in value.items()
    )


def _is_text_by_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


_USABLE: Mapping[str, Callable[[Any], bool]] = {
    "echo": _is_switch,
    "logit_bias": _is_bias,
    "max_tool_calls": _is_count,
    "metadata": _is_text_by_text,
    "n": _is_count,
    "parallel_tool_calls": _is_switch,
    "prompt_cache_key": _is_text,
    "service_tier": lambda value: value in ("auto", "default", "flex", "scale", "priority"),
    "store": _is_switch,
    "truncation": lambda value: value in ("auto", "disabled"),
    "user": _is_text,
}
"""Fields of OpenAI's and Anthropic's APIs that Ollama does not read, and the values that vLLM accepts for them."""
