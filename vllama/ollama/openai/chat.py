"""`POST /v1/chat/completions` (contract §5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from vllama.errors import RequestError
from vllama.ollama.gojson import Fields, known_fields
from vllama.ollama.openai import thinking, tools
from vllama.ollama.openai.call import (
    Call,
    ModelPart,
    check_types,
    drop_unlimited,
    keep_within_bounds,
    one_where_all_are_alike,
    own_values,
    read_object,
    stop_strings,
)
from vllama.ollama.openai.contents import settle_content
from vllama.ollama.openai.ignored import leave_out_unusable, mention
from vllama.ollama.openai.structured import enforce
from vllama.ollama.past_calls import arguments_text

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
        fields.items("tools", "[]api.Tool", lambda tool: _tool(fields, tool))
        effort = _effort(fields)
        if not messages:
            raise RequestError("[] is too short - 'messages'")
        shown = [settle_content(message) for message in messages]
        think = thinking.of_effort(effort)
        passed["messages"] = list(messages)
        _settle(passed)
        told = enforce(passed, "response_format")
        return cls(model, passed, think, "tools" in passed, any(shown), told)

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """Return the body with the model's sampling, messages, and system message unless the client's come first."""
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
    """Return the client's messages after the model's; the model's system message only if the client has none."""
    own = [{"role": role, "content": content} for role, content in part.messages]
    if part.system and messages[0].get("role") not in {"system", "developer"}:
        own.insert(0, {"role": "system", "content": part.system})
    return own + messages


def _settle(body: dict[str, Any]) -> None:
    """Remove fields that Ollama ignores and vLLM would refuse, and rename others to vLLM's."""
    for name in ("reasoning", "reasoning_effort"):
        body.pop(name, None)
    tools.settle_for_chat(body)
    leave_out_unusable(body)
    keep_within_bounds(body)
    if not body.get("stream"):
        body.pop("stream_options", None)
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    if "stop" in body:
        body["stop"] = stop_strings(body["stop"])
    drop_unlimited(body, "max_tokens", "max_completion_tokens")
    _name_schema(body)


def _name_schema(body: dict[str, Any]) -> None:
    """Give a schema the name and the place that vLLM requires; drop formats that Ollama ignores."""
    wanted = body.get("response_format")
    if not isinstance(wanted, dict):
        body.pop("response_format", None)
    elif wanted.get("type") == "json_schema":
        nested = wanted.get("json_schema")
        stated = nested if isinstance(nested, dict) else wanted  # as `text.format` of the Responses API
        if isinstance(stated.get("schema"), dict):
            named = {"name": stated.get("name") or "reply", "schema": stated["schema"]}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        else:
            del body["response_format"]
            mention("a 'response_format' without a schema")


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
    """Return a message with Go's types and canonical spelling; content is checked after all messages are read."""
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
    if isinstance(arguments, dict):  # Ollama's native form, which Ollama refuses on this route
        arguments = orjson.dumps(arguments).decode()
    elif not isinstance(arguments, str | None):
        raise function.mismatch("arguments", arguments, "string")
    return {
        "id": call.string("id"),
        "type": "function",
        "function": {"name": function.string("name"), "arguments": arguments_text(arguments or "")},
    }
