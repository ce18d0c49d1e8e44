"""`POST /v1/messages`, Anthropic's API (contract §5.7)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vllama.durations import quote
from vllama.errors import RequestError
from vllama.ollama.gojson import Fields, decode_base64, known_fields
from vllama.ollama.openai import thinking
from vllama.ollama.openai.blocks import settled_message, settled_system
from vllama.ollama.openai.call import (
    Call,
    ModelPart,
    check_types,
    keep_within_bounds,
    own_values,
    read_object,
    stop_strings,
)
from vllama.ollama.openai.ignored import leave_out_unusable
from vllama.ollama.openai.structured import enforce
from vllama.ollama.requests import Think

_STRUCT = "MessagesRequest"
_NUMBERS = ("temperature", "top_p")
_INTEGERS = ("max_tokens", "top_k")
_BOOLEANS = ("stream",)
_KNOWN = known_fields(
    *_NUMBERS, *_INTEGERS, *_BOOLEANS, "model", "messages", "system", "stop_sequences", "tools", "tool_choice",
    "thinking", "output_config", "chat_template", "chat_template_kwargs",
)  # fmt: skip
_HERE = frozenset({"temperature", "top_p", "top_k", "stop_sequences"})
"""Sampling values that vLLM accepts on this route."""
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
"""Efforts that count; as with Ollama, others have no effect on this route."""
_SERVER_TOOLS = ("web_search", "web_fetch", "code_execution", "tool_search", "mcp_toolset", "advisor")
"""How the types of tools begin that Anthropic's servers run."""


@dataclass(frozen=True, slots=True)
class AnthropicMessage(Call):
    """A request for a message, or for its token count."""

    @classmethod
    def parse(cls, body: bytes) -> AnthropicMessage:
        """Decode and check a body in Ollama's order. Raises RequestError."""
        fields, passed = read_object(body, _STRUCT, _KNOWN)
        model = fields.string("model")
        check_types(fields, _NUMBERS, _INTEGERS, _BOOLEANS)
        if model and fields.integer("max_tokens") <= 0:
            raise RequestError("max_tokens is required and must be positive")
        return cls._checked(model, fields, passed)

    @classmethod
    def parse_count(cls, body: bytes) -> AnthropicMessage:
        """Decode and check a body of `/v1/messages/count_tokens`, which needs no max_tokens. Raises RequestError."""
        fields, passed = read_object(body, _STRUCT, _KNOWN)
        return cls._checked(fields.string("model"), fields, passed)

    @classmethod
    def _checked(cls, model: str, fields: Fields, passed: dict[str, Any]) -> AnthropicMessage:
        if not model:
            raise RequestError("model is required")
        messages = fields.items("messages", "[]anthropic.MessageParam", _message)
        if not messages:
            raise RequestError("messages is required")
        shown = [_shows_image(message.get("content")) for message in messages]
        tools = fields.items("tools", "[]anthropic.Tool", _tool)
        stop = fields.items("stop_sequences", "[]string", lambda item: _text(fields, item))
        settled = [settled_message(message) for message in messages]
        passed |= {"messages": [message for message in settled if message["content"] != []], "tools": list(tools)}
        if "stop_sequences" in passed:
            passed["stop_sequences"] = stop_strings(list(stop))
        if isinstance(passed.get("system"), list):
            passed["system"] = settled_system(passed["system"])
        elif not isinstance(passed.get("system"), str):
            passed.pop("system", None)
        if not tools:
            passed.pop("tools")
        if not tools or not _is_choice(passed.get("tool_choice")):
            passed.pop("tool_choice", None)
        leave_out_unusable(passed)
        keep_within_bounds(passed)
        told = enforce(passed, "output_config", "format")
        return cls(model, passed, _think(passed), bool(tools), any(shown), told)

    def check(self, part: ModelPart) -> None:
        """Raise Unsupported if the model lacks a capability other than thinking, which is then just left out."""
        super(AnthropicMessage, replace(self, think=None)).check(part)

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """Return the body with the model's messages, its sampling, and its system message if the client has none."""
        own = own_values(part.parameters, limit="max_tokens", stop="stop_sequences")
        body = {**{name: own[name] for name in own.keys() & _HERE}, **self.body, **self._thinking(part)}
        body["messages"] = [{"role": role, "content": text} for role, text in part.messages] + body["messages"]
        if part.system and "system" not in body and all(m.get("role") != "system" for m in self.body["messages"]):
            body["system"] = part.system
        output = {name: value for name, value in body.pop("output_config", {}).items() if name != "effort"}
        if "thinking" in part.capabilities and (level := thinking.level(self.think)):
            output["effort"] = level
        return {**body, **({"output_config": output} if output else {})}

    def beyond_the_api(self, part: ModelPart) -> dict[str, Any]:
        """Return sampling values that Anthropic's API has no field for: penalties, min_p and the seed."""
        own = own_values(part.parameters, limit="max_tokens", stop="stop_sequences")
        return {name: own[name] for name in own.keys() - _HERE - {"max_tokens"}}


def _think(body: dict[str, Any]) -> Think:
    """Remove `thinking` and return its value, else the effort's; as with Ollama, a budget has no effect."""
    stated = body.pop("thinking", None)
    kind = stated.get("type") if isinstance(stated, dict) else None
    config = body.get("output_config")
    if not isinstance(config, dict):
        config = body.pop("output_config", None) and {}
    if kind in ("enabled", "disabled"):
        return bool(kind == "enabled")
    effort = config.get("effort") if config else None
    known = effort.strip().lower() if isinstance(effort, str) else ""
    return thinking.of_effort(known) if known in _EFFORTS else None


def _message(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError("invalid message format")
    return value


def _shows_image(content: Any) -> bool:
    """Return whether blocks or tool results contain images. Raises RequestError unless they are base64."""
    shows = False
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            raise RequestError("invalid content block format")
        if block.get("type") == "image":
            _check_source(block.get("source"))
            shows = True
        elif block.get("type") == "tool_result":
            shows = _shows_image(block.get("content")) or shows
    return shows


def _check_source(source: Any) -> None:
    if not isinstance(source, dict):
        raise RequestError("invalid image source")
    kind = source.get("type")
    if kind != "base64":
        raise RequestError(f"invalid image source type: {kind}. Only base64 images are supported.")
    data = source.get("data")
    try:
        decode_base64(data if isinstance(data, str) else "-")
    except RequestError as error:
        raise RequestError(f"invalid base64 image data: {error}") from None


def _tool(value: Any) -> dict[str, Any]:
    """Return a client's tool, with a schema. Raises RequestError for Anthropic's server tools."""
    if not isinstance(value, dict):
        raise RequestError("invalid tool format")
    if f"{value.get('type')}".startswith(_SERVER_TOOLS):
        raise RequestError(
            f"the server tool {quote(str(value.get('name') or value['type']))} is not supported: "
            "this server cannot search the web or run code"
        )
    settled = {name: item for name, item in value.items() if item is not None}
    return {"input_schema": {"type": "object"}, **settled}


def _text(fields: Fields, value: Any) -> str:
    if not isinstance(value, str):
        raise fields.mismatch("stop_sequences", value, "string")
    return value


def _is_choice(value: Any) -> bool:
    """Return whether vLLM accepts a `tool_choice`, which Ollama ignores."""
    kind = value.get("type") if isinstance(value, dict) else None
    return kind in ("auto", "any", "none") or (kind == "tool" and isinstance(value.get("name"), str))
