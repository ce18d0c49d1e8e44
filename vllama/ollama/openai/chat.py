"""`POST /v1/chat/completions` (contract §5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from vllama.errors import RequestError
from vllama.ollama.gojson import Fields, decode, decode_base64, known_fields
from vllama.ollama.openai import thinking
from vllama.ollama.openai.call import (
    Call,
    ModelPart,
    check_types,
    drop_unlimited,
    one_where_all_are_alike,
    own_values,
    read_object,
    stop_strings,
)

_STRUCT = "ChatCompletionRequest"
_NUMBERS = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
_INTEGERS = ("max_tokens", "max_completion_tokens", "seed", "top_logprobs")
_BOOLEANS = ("stream", "logprobs")
_KNOWN = known_fields(
    *_NUMBERS, *_INTEGERS, *_BOOLEANS, "model", "messages", "stop", "stream_options", "response_format", "tools",
    "tool_choice", "parallel_tool_calls", "reasoning", "reasoning_effort", "chat_template", "chat_template_kwargs",
)  # fmt: skip
_MESSAGE = known_fields("role", "content", "reasoning", "tool_calls", "name", "tool_call_id")
_TOOL_CALL = known_fields("id", "index", "type", "function")
_FUNCTION = known_fields("name", "arguments")
_REASONING = known_fields("effort")

NO_URLS = "image URLs are not currently supported, please use base64 encoded data instead"

# Kinds of content that only vLLM knows, and where each has its URL.
_MEDIA = ("audio_url", "video_url")


@dataclass(frozen=True, slots=True)
class ChatCompletion(Call):
    """A request for a chat completion."""

    @classmethod
    def parse(cls, body: bytes) -> ChatCompletion:
        """Decode and check a body in Ollama's order. Raises RequestError."""
        fields, passed = read_object(body, _STRUCT, _KNOWN)
        model = fields.string("model")
        check_types(fields, _NUMBERS, _INTEGERS, _BOOLEANS)
        messages = fields.items("messages", "[]openai.Message", _message)
        tools = fields.items("tools", "[]api.Tool", lambda tool: _tool(fields, tool))
        effort = _effort(fields)
        if not messages:
            raise RequestError("[] is too short - 'messages'")
        shown = [_check_content(message) for message in messages]
        think = thinking.of_effort(effort)
        passed["messages"] = list(messages)
        _settle(passed, has_tools=bool(tools))
        return cls(model, passed, think, bool(tools), any(shown))

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """The model's system unless the client's first message is one, its own messages, and its sampling."""
        own = own_values(part.parameters, limit="max_tokens")
        if "max_completion_tokens" in self.body:
            own.pop("max_tokens", None)
        level = thinking.level(self.think)
        return {
            **one_where_all_are_alike({**own, **self.body}),
            "messages": with_own_messages(self.body["messages"], part),
            **self._thinking(part),
            **({"reasoning_effort": level} if level else {}),
        }


def with_own_messages(messages: list[dict[str, Any]], part: ModelPart) -> list[dict[str, Any]]:
    """The client's messages after those of the model; its system only where the client brings none."""
    own = [{"role": role, "content": content} for role, content in part.messages]
    if part.system and messages[0].get("role") not in {"system", "developer"}:
        own.insert(0, {"role": "system", "content": part.system})
    return own + messages


def _settle(body: dict[str, Any], *, has_tools: bool) -> None:
    """Leave out what Ollama ignores and vLLM would refuse, and say the rest in vLLM's words."""
    for name in ("reasoning", "reasoning_effort"):
        body.pop(name, None)
    if not has_tools:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            body.pop(name, None)
    if not body.get("stream"):
        body.pop("stream_options", None)
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    if "stop" in body:
        body["stop"] = stop_strings(body["stop"])
    drop_unlimited(body, "max_tokens", "max_completion_tokens")
    _name_schema(body)


def _name_schema(body: dict[str, Any]) -> None:
    """Give a schema the name that vLLM insists on; a format that Ollama does not know has no effect there."""
    wanted = body.get("response_format")
    if not isinstance(wanted, dict):
        body.pop("response_format", None)
    elif wanted.get("type") == "json_schema" and isinstance(wanted.get("json_schema"), dict):
        body["response_format"] = {**wanted, "json_schema": {"name": "reply", **wanted["json_schema"]}}


def _effort(fields: Fields) -> str:
    reasoning = fields.raw("reasoning")
    if reasoning is not None:
        return Fields(reasoning, _STRUCT, _REASONING, prefix="reasoning.", go="openai.Reasoning").string("effort")
    return fields.string("reasoning_effort")


def _tool(fields: Fields, value: Any) -> Any:
    if not isinstance(value, dict):
        raise fields.mismatch("tools", value, "api.Tool")
    return value


def _message(value: Any) -> dict[str, Any]:
    """One message with Go's types and proper spelling; what it holds is checked when all messages are read."""
    fields = Fields(value, _STRUCT, _MESSAGE, prefix="messages.", go="openai.Message")
    message = {_MESSAGE.get(name.lower(), name): item for name, item in (value or {}).items() if item is not None}
    for name in ("role", "reasoning", "name", "tool_call_id"):
        fields.string(name)
    message["role"] = fields.string("role").lower()
    if "tool_calls" in message:
        message["tool_calls"] = list(fields.items("tool_calls", "[]openai.ToolCall", _tool_call))
    return message


def _tool_call(value: Any) -> dict[str, Any]:
    call = Fields(value, _STRUCT, _TOOL_CALL, prefix="messages.tool_calls.", go="openai.ToolCall")
    prefix = "messages.tool_calls.function."
    function = Fields(call.raw("function"), _STRUCT, _FUNCTION, prefix=prefix, go="struct")
    arguments = function.raw("arguments")
    if isinstance(arguments, dict):  # Ollama's native form, which it refuses here
        arguments = orjson.dumps(arguments).decode()
    elif not isinstance(arguments, str | None):
        raise function.mismatch("arguments", arguments, "string")
    return {
        "id": call.string("id"),
        "type": "function",
        "function": {"name": function.string("name"), "arguments": arguments or ""},
    }


def _check_content(message: dict[str, Any]) -> bool:
    """Whether a message shows images. Raises RequestError in Ollama's words where it cannot be understood."""
    for call in message.get("tool_calls", ()):
        _check_arguments(call["function"]["arguments"])
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return False
    if not isinstance(content, list):
        raise RequestError(f"invalid message content type: {go_type(content)}")
    return any([_shows_image(part) for part in content])  # noqa: C419 - every part is checked


def _check_arguments(text: str) -> None:
    try:
        arguments = decode(text.encode()) if text.strip() else {}
    except RequestError:
        arguments = ()
    if not isinstance(arguments, dict | None):
        raise RequestError("invalid tool call arguments")


def _shows_image(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return False
    if kind == "image_url":
        check_image(_url(part["image_url"]) if "image_url" in part else None)
        return True
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return False
    if kind in _MEDIA and (_url(part.get(kind)) or "").startswith("data:"):
        return False
    raise RequestError("invalid message format")


def _url(value: Any) -> str | None:
    """The URL of a part, which stands there alone or in an object."""
    url = value.get("url") if isinstance(value, dict) else value
    return url if isinstance(url, str) else None


def check_image(url: str | None) -> None:
    """Raise RequestError unless the URL is an image in base64: no server of ours fetches what a client names."""
    if url is None:
        raise RequestError("invalid message format")
    if url.lower().startswith(("http://", "https://")):
        raise RequestError(NO_URLS)
    if not url.startswith(("data:image/", "data:;base64,")) or ";base64," not in url:
        raise RequestError("invalid image input")
    try:
        decode_base64(url)
    except RequestError:
        raise RequestError("invalid image input") from None


def go_type(value: object) -> str:
    """Go's `%T` of a decoded JSON value."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "float64"
    return "map[string]interface {}" if isinstance(value, dict) else type(value).__name__
