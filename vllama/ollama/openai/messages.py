"""`POST /v1/messages`, Anthropic's API (contract §5.7)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vllama.durations import quote
from vllama.errors import RequestError
from vllama.ollama.gojson import Fields, decode_base64, known_fields
from vllama.ollama.openai import thinking
from vllama.ollama.openai.call import Call, ModelPart, check_types, own_values, read_object
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
"""The sampling values that vLLM takes on this route."""


@dataclass(frozen=True, slots=True)
class AnthropicMessage(Call):
    """A request for a message, or for the number of its tokens."""

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
        """The same of `/v1/messages/count_tokens`, which limits nothing."""
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
        if not tools:
            for name in ("tools", "tool_choice"):
                passed.pop(name, None)
        return cls(model, passed, _think(passed), bool(tools), any(shown))

    def check(self, part: ModelPart) -> None:
        """Raise Unsupported where the model cannot do it; whoever asks a plain model to think gets a plain answer."""
        super(AnthropicMessage, replace(self, think=None)).check(part)

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """The model's system where there is none, its own messages, and its sampling."""
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
        """What Anthropic's API has no field for: penalties, min_p and the seed."""
        own = own_values(part.parameters, limit="max_tokens", stop="stop_sequences")
        return {name: own[name] for name in own.keys() - _HERE - {"max_tokens"}}


def _think(body: dict[str, Any]) -> Think:
    """What `thinking` asks for, else the effort; a budget has no effect, as with Ollama. Takes `thinking` away."""
    stated = body.pop("thinking", None)
    kind = stated.get("type") if isinstance(stated, dict) else None
    config = body.get("output_config")
    if not isinstance(config, dict):
        config = body.pop("output_config", None) and {}
    if kind in ("enabled", "disabled"):
        return bool(kind == "enabled")
    effort = config.get("effort") if config else None
    return thinking.of_effort(effort) if isinstance(effort, str) else None


def _message(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError("invalid message format")
    return value


def _shows_image(content: Any) -> bool:
    """Whether blocks, or the results of tools among them, show images. Raises RequestError unless in base64."""
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
    """A tool of the client's. Raises RequestError for those that only Anthropic's own servers have."""
    if not isinstance(value, dict):
        raise RequestError("invalid tool format")
    if value.get("type") not in (None, "custom"):
        raise RequestError(
            f"the server tool {quote(str(value.get('name') or value['type']))} is not supported: "
            "nothing here can search the web or run code"
        )
    return value
