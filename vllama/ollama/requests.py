"""The requests of `/api/generate` and `/api/chat`, decoded and checked field by field (contract §1.2, §1.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from vllama.durations import Nanoseconds, parse_keep_alive, quote
from vllama.errors import FormatError, RequestError
from vllama.ollama.formats import enforced
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.ollama.past_calls import arguments_of

ThinkLevel = str
Think = bool | ThinkLevel | None

_NO_THINKING = ("none", "false")
"""Texts that mean no thinking; a level would switch it on."""

_COMMON = (
    "model", "stream", "format", "keep_alive", "options", "think", "truncate", "shift",
    "logprobs", "top_logprobs", "_debug_render_only",
)  # fmt: skip
_GENERATE = known_fields(*_COMMON, "prompt", "suffix", "images", "system", "template", "context", "raw")
_CHAT = known_fields(*_COMMON, "messages", "tools")
_MESSAGE = known_fields("role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id")
_PLAIN_MESSAGE = {"role", "content"}
_TOOL_CALL = known_fields("id", "function")
_FUNCTION_CALL = known_fields("index", "name", "arguments")


@dataclass(frozen=True, slots=True)
class Common:
    """Fields that the requests of both routes share.

    `keep_alive` is a duration, durations.FOREVER, or None if not given. `format` is None, "json" or a JSON Schema.
    `options` is as sent; vllama.ollama.options checks its types.
    """

    model: str
    stream: bool
    format: Any
    keep_alive: Nanoseconds | None
    options: dict[str, Any]
    think: Think
    truncate: bool
    shift: bool
    logprobs: bool
    top_logprobs: int
    debug_render_only: bool


@dataclass(frozen=True, slots=True)
class GenerateRequest(Common):
    """A request of `/api/generate` (contract §1.2). `images` are the decoded bytes."""

    prompt: str
    suffix: str
    images: tuple[bytes, ...]
    system: str
    template: str
    context: tuple[int, ...]
    raw: bool

    @classmethod
    def parse(cls, body: bytes) -> GenerateRequest:
        """Decode and check a body. Raises RequestError."""
        fields = Fields(decode(body), "GenerateRequest", _GENERATE)
        request = cls(
            **_common(fields),
            prompt=fields.string("prompt"),
            suffix=fields.string("suffix"),
            images=fields.images("images"),
            system=fields.string("system"),
            template=fields.string("template"),
            context=fields.integers("context"),
            raw=fields.boolean("raw") or False,
        )
        _check_logprobs(request.top_logprobs)
        return request

    @property
    def is_empty(self) -> bool:
        """Whether the request only loads or unloads the model (contract §2.1: only `prompt` counts)."""
        return not self.prompt


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in an assistant message; `arguments` is the JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a chat."""

    role: str
    content: str = ""
    thinking: str = ""
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class ChatRequest(Common):
    """A request of `/api/chat` (contract §1.3). `tools` keep their complete schemas."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]

    @classmethod
    def parse(cls, body: bytes) -> ChatRequest:
        """Decode and check a body. Raises RequestError."""
        fields = Fields(decode(body), "ChatRequest", _CHAT)
        request = cls(
            **_common(fields),
            messages=fields.items("messages", "[]api.Message", _message),
            tools=fields.items("tools", "api.Tools", _tool),
        )
        _check_logprobs(request.top_logprobs)
        return request

    @property
    def is_empty(self) -> bool:
        """Whether the request only loads or unloads the model."""
        return not self.messages


def _common(fields: Fields) -> dict[str, Any]:
    options = fields.mapping("options")
    stream, truncate, shift = fields.boolean("stream"), fields.boolean("truncate"), fields.boolean("shift")

    def lifted(name: str) -> Any:
        # Some clients (n8n) put these into `options`.
        value = fields.raw(name)
        return options.get(name) if value is None else value

    return {
        "model": fields.string("model"),
        "stream": True if stream is None else stream,
        "format": _format(lifted("format")),
        "keep_alive": parse_keep_alive(lifted("keep_alive")),
        "options": options,
        "think": _think(lifted("think")),
        "truncate": True if truncate is None else truncate,
        "shift": True if shift is None else shift,
        "logprobs": fields.boolean("logprobs") or False,
        "top_logprobs": fields.integer("top_logprobs"),
        "debug_render_only": fields.boolean("_debug_render_only") or False,
    }


def _check_logprobs(top: int) -> None:
    if not 0 <= top <= 20:
        raise RequestError("top_logprobs must be between 0 and 20")


def _format(value: Any) -> Any:
    """Return the format unchanged: `check_format` refuses invalid ones later, after the checks of the model."""
    return None if value == "" else value


def check_format(value: Any) -> None:
    """Raise FormatError unless the value is None, "json" or an object (contract §2.4), SchemaError for a bad schema."""
    if value is None or value == "json":
        return
    if isinstance(value, dict):
        enforced(value)
        return
    try:
        shown = quote(orjson.dumps(value).decode())
    except TypeError:  # nested more deeply than orjson can write
        shown = quote("[…]")
    raise FormatError(f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def _think(value: Any) -> Think:
    """Return the value: any text is a level, as in newer Ollamas, and the model's template decides what it means."""
    if isinstance(value, str):
        return False if value in _NO_THINKING else value or None
    if value is None or isinstance(value, bool):
        return value
    raise RequestError('think must be a boolean or string ("high", "medium", "low", "max", true, or false)')


def _message(value: Any) -> Message:
    if isinstance(value, dict) and value.keys() == _PLAIN_MESSAGE:  # most messages; takes a third of the time
        role, content = value["role"], value["content"]
        if isinstance(role, str) and isinstance(content, str):
            return Message(role.lower(), content)
    fields = Fields(value, "ChatRequest", _MESSAGE, prefix="messages.", go="api.Message")
    return Message(
        role=fields.string("role").lower(),
        content=_content(fields),
        thinking=fields.string("thinking"),
        images=fields.images("images"),
        tool_calls=fields.items("tool_calls", "[]api.ToolCall", _tool_call),
        tool_name=fields.string("tool_name"),
        tool_call_id=fields.string("tool_call_id"),
    )


def _content(fields: Fields) -> str:
    """Return the text, or text parts joined by newlines, which some clients send and Ollama refuses (contract §10)."""
    value = fields.raw("content")
    if not isinstance(value, list):
        return fields.string("content")
    texts = []
    for part in value:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise fields.mismatch("content", value, "string")
        texts.append(part["text"])
    return "\n".join(texts)


def _tool_call(value: Any) -> ToolCall:
    call = Fields(value, "ChatRequest", _TOOL_CALL, prefix="messages.tool_calls.", go="api.ToolCall")
    function = Fields(
        call.raw("function"),
        "ChatRequest",
        _FUNCTION_CALL,
        prefix="messages.tool_calls.function.",
        go="api.ToolCallFunction",
    )
    arguments = function.raw("arguments")
    if isinstance(arguments, str):
        # Clients made for OpenAI send the object as a JSON string; Ollama refuses that (contract §10).
        arguments = arguments_of(arguments)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise function.mismatch("arguments", arguments, "api.ToolCallFunctionArguments")
    return ToolCall(id=call.string("id"), name=function.string("name"), arguments=arguments)


def _tool(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(
            "json: cannot unmarshal " + ("array" if isinstance(value, list) else "value")
            + " into Go struct field ChatRequest.tools of type api.Tool"
        )  # fmt: skip
    return value
