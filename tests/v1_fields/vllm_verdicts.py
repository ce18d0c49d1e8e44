"""What the installed vLLM says to request bodies, in a process of its own: vLLM reads its limits when it is imported.

usage: python -m v1_fields.vllm_verdicts < BODIES > VERDICTS

BODIES is a JSON list of pairs of path and body; VERDICTS a JSON object: `refused` has for each pair the reason, or null
if vLLM would serve it; `types` the fields that vLLM reads on each path, with their types in words.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

MODELS: dict[str, Any] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": AnthropicMessagesRequest,
}


def refusal(path: str, body: Any) -> str | None:
    """Return why vLLM would refuse the body before it is rendered; None if it would not."""
    try:
        request = MODELS[path].model_validate(body)
        if isinstance(request, AnthropicMessagesRequest):
            request = AnthropicServingMessages.to_chat_completion_request(request)
        request.to_sampling_params(16, {})
    except Exception as error:  # noqa: BLE001 - whatever is raised, a client gets no answer
        return f"{type(error).__name__}: {error}"
    return None


def field_types(model: Any) -> dict[str, str]:
    """Return the type of each field in words."""
    schema = model.model_json_schema()
    return {name: in_words(field) for name, field in sorted(schema["properties"].items())}


def in_words(schema: Any) -> str:
    """Return a JSON Schema in a few words; null is not told."""
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(in_words(option) for option in options if option.get("type") != "null"))
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return " or ".join(json.dumps(value) for value in values)
    kind = str(schema.get("type", "object" if "$ref" in schema else "any"))
    limits = [f"{words} {schema[key]}" for key, words in LIMITS.items() if key in schema]
    return ", ".join([kind, *limits])


LIMITS = {"minimum": "from", "maximum": "to", "maxItems": "at most"}


def main() -> None:
    """Read the bodies and write the verdicts."""
    bodies = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        refused = [refusal(path, body) for path, body in bodies]
    types = {path: field_types(model) for path, model in MODELS.items()}
    json.dump({"refused": refused, "types": types}, sys.stdout)


if __name__ == "__main__":
    main()
