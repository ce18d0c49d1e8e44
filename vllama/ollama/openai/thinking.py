"""Thinking levels of each API (contract §5.1, §5.7)."""

from __future__ import annotations

from typing import Any

from vllama.errors import RequestError
from vllama.ollama.requests import Think

_EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}


def of_effort(effort: str) -> Think:
    """Return the thinking level of a `reasoning_effort`; None for "". Raises RequestError for unknown efforts."""
    if not effort:
        return None
    if effort not in _EFFORTS:
        raise RequestError(f'invalid reasoning value: \'{effort}\' (must be "high", "medium", "low", "max", or "none")')
    return _EFFORTS[effort]


def template_arguments(think: Think) -> dict[str, Any]:
    """Return both names that chat templates use for the switch; as with Ollama, thinking is on by default."""
    switch = think is not False
    return {"enable_thinking": switch, "thinking": switch}


def level(think: Think) -> str | None:
    """Return the level in a form that all model families of vLLM accept: "max" becomes "high"."""
    return {"max": "high"}.get(think, think) if isinstance(think, str) else None
