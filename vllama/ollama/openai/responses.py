"""`POST /v1/responses` (contract §5.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllama.errors import RequestError
from vllama.ollama.gojson import Fields, known_fields
from vllama.ollama.openai import thinking, tools
from vllama.ollama.openai.call import (
    Call,
    ModelPart,
    check_types,
    drop_unlimited,
    keep_within_bounds,
    own_values,
    read_object,
    stop_strings,
)
from vllama.ollama.openai.contents import check_image
from vllama.ollama.openai.ignored import leave_out_unusable
from vllama.ollama.openai.items import items_of, parts_of
from vllama.ollama.openai.structured import enforce

_STRUCT = "ResponsesRequest"
_NUMBERS = ("temperature", "top_p")
_INTEGERS = ("max_output_tokens",)
_BOOLEANS = ("stream",)
_KNOWN = known_fields(
    *_NUMBERS, *_INTEGERS, *_BOOLEANS, "model", "input", "instructions", "reasoning", "text", "tools", "tool_choice",
    "parallel_tool_calls", "chat_template", "chat_template_kwargs",
)  # fmt: skip
_REASONING = known_fields("effort", "summary")
_SUMMARIES = ("auto", "concise", "detailed")
_LOGPROBS = "message.output_text.logprobs"
"""The only value of `include` with an effect: encrypted reasoning, for one, is never made here."""


@dataclass(frozen=True, slots=True)
class Response(Call):
    """A request of the Responses API."""

    @classmethod
    def parse(cls, body: bytes) -> Response:
        """Decode and check a body in Ollama's order. Raises RequestError."""
        fields, passed = read_object(body, _STRUCT, _KNOWN)
        model = fields.string("model")
        fields.string("instructions")
        check_types(fields, _NUMBERS, _INTEGERS, _BOOLEANS)
        fields.items("tools", "[]openai.ResponsesTool", lambda tool: _tool(fields, tool))
        items = items_of(passed.get("input"))
        shown = [_shows_image(item) for item in items]
        reasoning = Fields(passed.get("reasoning"), _STRUCT, _REASONING, prefix="reasoning.", go="openai.Reasoning")
        think = thinking.of_effort(reasoning.string("effort"))
        _settle(passed)
        passed["input"] = items
        told = enforce(passed, "text", "format")
        return cls(model, passed, think, "tools" in passed, any(shown), told)

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """Return the body with the model's sampling, messages, and system message if there are no instructions."""
        items = self.body["input"]
        body = {**own_values(part.parameters, limit="max_output_tokens"), **self.body, **self._thinking(part)}
        body["input"] = [{"role": role, "content": content} for role, content in part.messages] + items
        if part.system and "instructions" not in body and not any(_is_system(item) for item in items):
            body["instructions"] = part.system
        reasoning = {name: value for name, value in body.pop("reasoning", {}).items() if name.lower() != "effort"}
        if level := thinking.level(self.think):
            reasoning["effort"] = level
        return {**body, **({"reasoning": reasoning} if reasoning else {})}


def _tool(fields: Fields, value: Any) -> Any:
    if not isinstance(value, dict):
        raise fields.mismatch("tools", value, "openai.ResponsesTool")
    return value


def _settle(body: dict[str, Any]) -> None:
    """Remove values that Ollama ignores and vLLM would refuse, and write others as vLLM requires them."""
    tools.settle_for_responses(body)
    leave_out_unusable(body, "top_logprobs")
    keep_within_bounds(body)
    drop_unlimited(body, "max_output_tokens")
    body.pop("background", None)  # the reply is complete when it is sent, as with Ollama
    if "stop" in body:
        body["stop"] = stop_strings(body["stop"])
    if "include" in body:
        included = body["include"] if isinstance(body["include"], list) else []
        body["include"] = [name for name in included if name == _LOGPROBS]
    if isinstance(reasoning := body.get("reasoning"), dict):
        body["reasoning"] = {
            name: value for name, value in reasoning.items() if name.lower() == "effort" or value in _SUMMARIES
        }
    if "text" in body:
        body["text"] = _settled_text(body["text"])


def _settled_text(text: Any) -> dict[str, Any]:
    """Return `text` with a format that vLLM knows, which has the name that vLLM requires."""
    if not isinstance(text, dict):
        return {}
    settled: dict[str, Any] = {}
    if text.get("verbosity") in ("low", "medium", "high"):
        settled["verbosity"] = text["verbosity"]
    wanted = text.get("format")
    if isinstance(wanted, dict) and wanted.get("type") in ("text", "json_object"):
        settled["format"] = wanted
    elif isinstance(wanted, dict) and wanted.get("type") == "json_schema" and wanted.get("schema") is not None:
        settled["format"] = {**wanted, "name": wanted.get("name") or "reply"}
    return settled


def _is_system(item: Any) -> bool:
    return isinstance(item, dict) and item.get("role") in ("system", "developer")


def _shows_image(item: Any) -> bool:
    """Return whether an item contains images. Raises RequestError for files and for images with remote URLs."""
    shows = False
    for part in parts_of(item):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "input_file":
            raise RequestError("file inputs are not currently supported")
        if kind == "input_image":
            url = part.get("image_url")
            check_image(url if isinstance(url, str) else None)
            shows = True
    return shows
