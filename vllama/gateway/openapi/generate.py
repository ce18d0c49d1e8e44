"""Records and operation of `/api/generate`."""

from __future__ import annotations

from vllama.gateway.openapi import errors
from vllama.gateway.openapi.errors import MODEL
from vllama.gateway.openapi.inference import TAG, TIMINGS_EXAMPLE, InferenceReply, InferenceRequest
from vllama.gateway.openapi.operation import Content, Operation, Reply, stream
from vllama.gateway.openapi.records import Base64


class GenerateRequest(InferenceRequest):
    """A request of `/api/generate`. Without `prompt`, it only loads the model, or unloads it if `keep_alive` is 0."""

    prompt: str | None = ""
    """The prompt. The model's template is applied to it, unless `raw` is true."""
    suffix: str | None = ""
    """Text after the gap that the model fills. Its template must support it."""
    images: list[Base64 | None] | None = None
    """Images for models that see. Images and `suffix` exclude each other."""
    system: str | None = ""
    """System message, instead of the model's own."""
    template: str | None = ""
    """Prompt template in Go's language, instead of the model's own."""
    context: list[int | None] | None = None
    """Tokens of the conversation so far: `context` of the previous reply. It comes before the prompt."""
    raw: bool | None = False
    """Whether to pass on the prompt without a template. Excludes `system`, `template` and `context`."""


class GenerateReply(InferenceReply):
    """A record of `/api/generate`."""

    response: str
    """The answer, or its next piece."""
    thinking: str | None = None
    """The model's thinking, or its next piece; missing if empty."""
    context: list[int] | None = None
    """Tokens of prompt and answer, for `context` of the next request; in the last record."""


_PIECE = {"model": MODEL, "created_at": "2026-11-21T09:11:25.100000001Z", "response": "The sky", "done": False}
_LAST = {
    "model": MODEL,
    "created_at": "2026-11-21T09:11:25.289327117Z",
    "response": " is blue.",
    "done": True,
    "done_reason": "stop",
    "context": [1, 4093, 198],
    **TIMINGS_EXAMPLE,
}
_LOADED = {
    "model": MODEL,
    "created_at": "2026-11-21T09:11:10.612942545Z",
    "response": "",
    "done": True,
    "done_reason": "load",
}

OPERATIONS = (
    Operation(
        "POST",
        "/api/generate",
        TAG,
        "Complete a prompt",
        "Loads the model if necessary. Ollama's order of checks applies before a model is loaded.",
        request=Content(
            GenerateRequest,
            {
                "Stream": {"model": MODEL, "prompt": "Why is the sky blue?"},
                "One record": {"model": MODEL, "prompt": "Why is the sky blue?", "stream": False},
                "JSON Schema": {
                    "model": MODEL,
                    "prompt": "Name a colour.",
                    "stream": False,
                    "format": {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]},
                    "options": {"temperature": 0, "num_predict": 32},
                },
                "Load": {"model": MODEL, "keep_alive": "10m"},
                "Unload": {"model": MODEL, "keep_alive": 0},
            },
        ),
        replies={
            200: Reply(
                "The answer: a stream of records, or one record if `stream` is false or nothing is generated.",
                (
                    stream(GenerateReply, {"Stream": [_PIECE, _LAST]}),
                    Content(
                        GenerateReply, {"One record": {**_LAST, "response": "The sky is blue."}, "Loaded": _LOADED}
                    ),
                ),
            )
        },
        errors={
            400: (
                "raw mode does not support template, system, or context",
                'option "temperature" must be of type float32',
                "the input length exceeds the context length",
            ),
            **errors.NOT_FOUND,
            **errors.LOADING,
        },
    ),
)
