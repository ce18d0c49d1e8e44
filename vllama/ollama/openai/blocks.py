"""Content blocks of Anthropic's messages, in the form that vLLM takes (contract §5.7)."""

from __future__ import annotations

from typing import Any

import orjson

from vllama.ollama.openai.ignored import mention
from vllama.ollama.past_calls import arguments_of

_AS_THEY_ARE = (
    "text", "image", "tool_result", "thinking", "redacted_thinking", "tool_reference", "tool_addition",
    "tool_removal",
)  # fmt: skip
_SEARCH_FAILED = "web_search_tool_result_error"


def settled_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without blocks that Ollama ignores and vLLM would refuse; a missing text is empty."""
    role = message.get("role")
    settled = {name: value for name, value in message.items() if value is not None}
    if isinstance(role, str):
        settled["role"] = {"developer": "system"}.get(role.lower(), role.lower())
    content = settled.get("content", "")
    settled["content"] = _settled_blocks(content) if isinstance(content, list) else content
    return settled


def settled_system(blocks: list[Any]) -> list[Any]:
    """Return the texts of a system prompt: Ollama ignores other blocks."""
    return [block for block in _settled_blocks(blocks) if block.get("type") == "text"]


def _settled_blocks(blocks: list[Any]) -> list[dict[str, Any]]:
    settled = [_settled(block) for block in blocks if isinstance(block, dict)]
    return [block for block in settled if block is not None]


def _settled(block: dict[str, Any]) -> dict[str, Any] | None:
    """Return a block as vLLM takes it; None if a model gets nothing of it."""
    kind = block.get("type")
    known = {name: value for name, value in block.items() if value is not None}
    if kind == "text" and not isinstance(block.get("text"), str):
        return None
    if kind == "tool_result" and isinstance(block.get("content"), list):
        return {**known, "content": _settled_blocks(block["content"])}
    if kind in ("tool_use", "server_tool_use"):
        return {**known, "type": "tool_use", "input": _input(block.get("input"))}
    if kind in _AS_THEY_ARE:
        return known
    if kind == "web_search_tool_result":
        return {
            "type": "tool_result",
            "tool_use_id": f"{known.get('tool_use_id', '')}",
            "content": _search_results(block.get("content")),
        }
    if kind == "document" and isinstance(text := _document_text(block.get("source")), str):
        return {"type": "text", "text": text}
    mention(f"a content block of the type {kind!r}")
    return None


def _input(value: Any) -> dict[str, Any]:
    """Return the arguments of a past call; an agent may send back a text that its model did not finish."""
    if isinstance(value, str):
        return arguments_of(value)
    return value if isinstance(value, dict) else {}


def _document_text(source: Any) -> Any:
    """Return the text of a document that is one; None for PDFs and references to files."""
    return source.get("data") if isinstance(source, dict) and source.get("type") == "text" else None


def _search_results(content: Any) -> str:
    """Return the results of an earlier search as Ollama shows them to a model."""
    if isinstance(content, str):
        return content
    lines = ""
    for item in content if isinstance(content, list) else [content]:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "web_search_result":
            lines += f"- {item.get('title') or ''}: {item.get('url') or ''}\n"
        elif kind == _SEARCH_FAILED:
            return f"{_SEARCH_FAILED}: {code}" if (code := item.get("error_code")) else _SEARCH_FAILED
        elif not isinstance(content, list):
            return orjson.dumps(content).decode()
    return lines
