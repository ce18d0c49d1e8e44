"""`POST /v1/responses` (contract §5.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllama.errors import RequestError
from vllama.ollama.gojson import Fields, known_fields
from vllama.ollama.openai import thinking
from vllama.ollama.openai.call import Call, ModelPart, check_types, drop_unlimited, own_values, read_object
from vllama.ollama.openai.chat import check_image

_STRUCT = "ResponsesRequest"
_NUMBERS = ("temperature", "top_p")
_INTEGERS = ("max_output_tokens",)
_BOOLEANS = ("stream",)
_KNOWN = known_fields(
    *_NUMBERS, *_INTEGERS, *_BOOLEANS, "model", "input", "instructions", "reasoning", "text", "tools", "tool_choice",
    "parallel_tool_calls", "chat_template", "chat_template_kwargs",
)  # fmt: skip
_REASONING = known_fields("effort", "summary")


@dataclass(frozen=True, slots=True)
class Response(Call):
    """A request for a response."""

    @classmethod
    def parse(cls, body: bytes) -> Response:
        """Decode and check a body in Ollama's order. Raises RequestError."""
        fields, passed = read_object(body, _STRUCT, _KNOWN)
        model = fields.string("model")
        fields.string("instructions")
        check_types(fields, _NUMBERS, _INTEGERS, _BOOLEANS)
        tools = fields.items("tools", "[]openai.ResponsesTool", lambda tool: tool)
        items = _items(passed.get("input"))
        shown = [_shows_image(item) for item in items]
        reasoning = Fields(passed.get("reasoning"), _STRUCT, _REASONING, prefix="reasoning.", go="openai.Reasoning")
        think = thinking.of_effort(reasoning.string("effort"))
        if not tools:
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                passed.pop(name, None)
        drop_unlimited(passed, "max_output_tokens")
        passed["input"] = items
        return cls(model, passed, think, bool(tools), any(shown))

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """The model's system where there are no instructions, its own messages before the input, and its sampling."""
        items = self.body["input"]
        body = {**own_values(part.parameters, limit="max_output_tokens"), **self.body, **self._thinking(part)}
        body["input"] = [{"role": role, "content": content} for role, content in part.messages] + items
        if part.system and "instructions" not in body and not any(_is_system(item) for item in items):
            body["instructions"] = part.system
        reasoning = {name: value for name, value in body.pop("reasoning", {}).items() if name.lower() != "effort"}
        if level := thinking.level(self.think):
            reasoning["effort"] = level
        return {**body, **({"reasoning": reasoning} if reasoning else {})}


def _items(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise RequestError("input is required: a text or a list of items")
    return value


def _is_system(item: Any) -> bool:
    return isinstance(item, dict) and item.get("role") in ("system", "developer")


def _shows_image(item: Any) -> bool:
    """Whether an item shows images. Raises RequestError for files, and for images that would have to be fetched."""
    content = item.get("content") if isinstance(item, dict) else None
    if isinstance(item, dict) and isinstance(item.get("output"), list):  # of a tool
        content = item["output"]
    shows = False
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "input_file":
            raise RequestError("file inputs are not currently supported")
        if kind == "input_image":
            url = part.get("image_url")
            check_image(url if isinstance(url, str) else None)
            shows = True
    return shows
