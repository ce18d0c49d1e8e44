"""Records and operation of `/api/chat`."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from vllama.gateway.openapi import errors
from vllama.gateway.openapi.errors import MODEL
from vllama.gateway.openapi.inference import TAG, TIMINGS_EXAMPLE, InferenceReply, InferenceRequest
from vllama.gateway.openapi.operation import Content, Operation, Reply, stream
from vllama.gateway.openapi.records import Base64, JsonObject, Record


class TextPart(Record):
    """A part of a message's content."""

    type: str
    """The kind of part: `text`."""
    text: str
    """The text itself."""


class FunctionCall(Record):
    """The function of a tool call."""

    index: int | None = None
    """Number of the call in its reply, from 0."""
    name: str | None = ""
    """Name of the function."""
    arguments: JsonObject | str | None = None
    """Arguments by name. In requests, the object may also be written as a JSON string."""


class ToolCall(Record):
    """A tool call in an assistant message."""

    id: str | None = ""
    """Identifier of the call, which the message with the tool's result may repeat."""
    function: FunctionCall | None = None
    """The function to call."""


class Message(Record):
    """A message of a chat."""

    role: str | None = ""
    """`system`, `user`, `assistant` or `tool`."""
    content: str | list[TextPart] | None = ""
    """The text. Text parts are joined by line ends."""
    thinking: str | None = ""
    """The thinking of an assistant message."""
    images: list[Base64 | None] | None = None
    """Images for models that see."""
    tool_calls: list[ToolCall] | None = None
    """Tool calls of an assistant message."""
    tool_name: str | None = ""
    """In a message with role `tool`: name of the tool whose result this is."""
    tool_call_id: str | None = ""
    """In a message with role `tool`: identifier of the call whose result this is."""


class ToolFunction(Record):
    """The function that a tool offers."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    """Name of the function."""
    description: str | None = None
    """Description of the function for the model."""
    parameters: JsonObject | None = None
    """Parameters as a JSON Schema object."""


class Tool(Record):
    """A tool that the model may call. It reaches the model's template with all its fields."""

    model_config = ConfigDict(extra="allow")

    type: str | None = None
    """The kind of tool: `function`."""
    function: ToolFunction | None = None
    """The function that the tool offers."""


class ChatRequest(InferenceRequest):
    """A request of `/api/chat`. Without `messages`, it only loads the model, or unloads it if `keep_alive` is 0."""

    messages: list[Message] | None = None
    """The conversation so far. If it is too long, its oldest messages are left out."""
    tools: list[Tool] | None = None
    """Tools that the model may call; for models with the capability `tools`."""


class ReplyFunctionCall(Record):
    """The function that the model calls."""

    index: int | None = None
    """Number of the call in this reply, from 0."""
    name: str
    """Name of the function."""
    arguments: dict[str, Any]
    """Arguments by name."""


class ReplyToolCall(Record):
    """A tool call by the model."""

    id: str | None = None
    """Identifier of the call."""
    function: ReplyFunctionCall
    """The function to call."""


class ReplyMessage(Record):
    """The assistant's message, or its next piece."""

    role: str
    """`assistant`; empty with `_debug_render_only`."""
    content: str
    """The answer, or its next piece."""
    thinking: str | None = None
    """The model's thinking, or its next piece; missing if empty."""
    tool_calls: list[ReplyToolCall] | None = None
    """Complete tool calls by the model; missing if there are none."""


class ChatReply(InferenceReply):
    """A record of `/api/chat`."""

    message: ReplyMessage
    """The message, or its next piece."""


_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Return the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _answer(content: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **more}
    return {"model": MODEL, "created_at": "2026-11-21T09:11:25.289327117Z", "message": message}


_PIECE = {**_answer("The sky"), "done": False}
_LAST = {**_answer(" is blue."), "done": True, "done_reason": "stop", **TIMINGS_EXAMPLE}
_CALL = {"id": "call_8d3f", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Lyon"}}}
_QUESTION = {"role": "user", "content": "Why is the sky blue?"}

OPERATIONS = (
    Operation(
        "POST",
        "/api/chat",
        TAG,
        "Answer a chat",
        "Loads the model if necessary. Ollama's order of checks applies before a model is loaded.",
        request=Content(
            ChatRequest,
            {
                "Stream": {"model": MODEL, "messages": [_QUESTION]},
                "One record": {
                    "model": MODEL,
                    "messages": [{"role": "system", "content": "Answer in one sentence."}, _QUESTION],
                    "stream": False,
                    "options": {"temperature": 0, "seed": 42, "num_predict": 64, "stop": ["\n\n"]},
                },
                "Tools": {
                    "model": "qwen3:0.6b",
                    "messages": [{"role": "user", "content": "What is the weather in Lyon?"}],
                    "tools": [_TOOL],
                    "think": False,
                    "stream": False,
                },
                "Load": {"model": MODEL, "messages": []},
            },
        ),
        replies={
            200: Reply(
                "The answer: a stream of records, or one record if `stream` is false or nothing is generated.",
                (
                    stream(ChatReply, {"Stream": [_PIECE, _LAST]}),
                    Content(
                        ChatReply,
                        {
                            "One record": {**_LAST, **_answer("The sky is blue.")},
                            "Tool call": {**_LAST, **_answer("", tool_calls=[_CALL])},
                            "Loaded": {**_answer(""), "done": True, "done_reason": "load"},
                        },
                    ),
                ),
            )
        },
        errors={
            400: (
                "model is required",
                f"registry.ollama.ai/library/{MODEL} does not support tools",
                'option "temperature" must be of type float32',
            ),
            **errors.NOT_FOUND,
            **errors.LOADING,
        },
    ),
)
