"""How hard to think, in the words of each API (contract §5.1, §5.7)."""

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
    """What `reasoning_effort` asks for; None for "". Raises RequestError where Ollama knows no such effort."""
    if not effort:
        return None
    if effort not in _EFFORTS:
        raise RequestError(f'invalid reasoning value: \'{effort}\' (must be "high", "medium", "low", "max", or "none")')
    return _EFFORTS[effort]


def template_arguments(think: Think) -> dict[str, Any]:
    """Both names that chat templates use for the switch; saying nothing switches thinking on, as with Ollama."""
    switch = think is not False
    return {"enable_thinking": switch, "thinking": switch}


def level(think: Think) -> str | None:
    """The level that every one of vLLM's families takes: not all know more than high."""
    return {"max": "high"}.get(think, think) if isinstance(think, str) else None
