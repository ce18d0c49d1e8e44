"""Input items of the Responses API, in the form that vLLM takes (contract §5.5)."""

from __future__ import annotations

from typing import Any

import orjson

from vllama.errors import RequestError
from vllama.ollama.past_calls import arguments_text

_DETAILS = ("auto", "low", "high", "original")


def items_of(value: Any) -> list[Any]:
    """Return an `input` as items. Raises RequestError if it is neither a text nor a list of items."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise RequestError("input is required: a string or a list of items")
    return [_settled(item) for item in value if not _says_nothing(item)]


def parts_of(item: Any) -> list[Any]:
    """Return the parts of an item's content, or of a tool's output; [] if it is a text."""
    if not isinstance(item, dict):
        return []
    found = item["output"] if isinstance(item.get("output"), list) else item.get("content")
    return found if isinstance(found, list) else []


def _says_nothing(item: Any) -> bool:
    """Return whether a model gets nothing of the item: a server's search, as with Ollama, and thinking without text."""
    if not isinstance(item, dict):
        return False
    return item.get("type") == "web_search_call" or (item.get("type") == "reasoning" and not _thought(item))


def _settled(item: Any) -> Any:
    """Return an item as vLLM takes it, without nulls."""
    if not isinstance(item, dict):
        return item
    settled = {name: value for name, value in item.items() if value is not None}
    kind = settled.get("type", "message" if "role" in settled else "")
    if kind == "reasoning":
        thought = {"type": "reasoning_text", "text": _thought(settled)}
        settled = {**settled, "summary": [], "content": [thought]}
        settled.pop("encrypted_content", None)
    elif kind == "message" and isinstance(content := settled.get("content"), list):
        if settled.get("role") == "assistant":  # of several parts vLLM reads the first, and only with the type
            settled["type"] = "message"
            settled["content"] = [{"type": "output_text", "text": _text_of(content), "annotations": []}]
        else:
            settled["content"] = [_settled_part(part) for part in content]
    elif kind == "function_call":
        arguments = settled.get("arguments", "")
        settled["arguments"] = arguments_text(arguments if isinstance(arguments, str) else _json(arguments))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        output = settled.get("output", "")
        if isinstance(output, list):
            settled["output"] = [_settled_part(part) for part in output]
        else:
            settled["output"] = output if isinstance(output, str) else _json(output)
    return settled


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _thought(item: dict[str, Any]) -> str:
    """Return the text of earlier thinking; Ollama's `encrypted_content`, which vLLM refuses, is that text, too."""
    said = _text_of(item.get("content")) or _text_of(item.get("summary")) or item.get("encrypted_content")
    return said if isinstance(said, str) else ""


def _settled_part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    settled = {name: value for name, value in part.items() if value is not None}
    if settled.get("type") in ("text", "output_text"):  # of chat completions, and of replies
        settled = {"type": "input_text", "text": settled.get("text", "")}
    if settled.get("type") == "input_image" and settled.get("detail") not in _DETAILS:
        settled["detail"] = "auto"
    return settled


def _text_of(parts: Any) -> str:
    """Return all text of a list of parts."""
    known = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    texts = [part.get("refusal" if part.get("type") == "refusal" else "text") for part in known]
    return "".join(text for text in texts if isinstance(text, str))
