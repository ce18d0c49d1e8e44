"""Routes of OpenAI's and Anthropic's APIs, and vLLM's own, whose records are vLLM's."""

from __future__ import annotations

from vllama.gateway.openapi.operation import Content, Operation, Parameter, Reply

TAG = "OpenAI, Anthropic and vLLM"

_SCHEMAS = (
    "The schemas of request and reply are vLLM's; see its documentation. docs/compatibility.md has the differences."
)
_FORM = "multipart/form-data"
_SUMMARIES = {
    "/v1/chat/completions": "Answer a chat (OpenAI)",
    "/v1/completions": "Complete a prompt (OpenAI)",
    "/v1/responses": "Create a response (OpenAI)",
    "/v1/embeddings": "Embed texts (OpenAI)",
    "/v1/messages": "Answer a chat (Anthropic)",
    "/v1/messages/count_tokens": "Count the tokens of a chat (Anthropic)",
    "/rerank": "Rank documents",
    "/v1/rerank": "Rank documents",
    "/v2/rerank": "Rank documents",
    "/score": "Score pairs of texts",
    "/v1/score": "Score pairs of texts",
    "/classify": "Classify texts",
    "/v1/systemone": "Answer questions about a state with probabilities (System One)",
    "/tokenize": "Turn text into tokens",
    "/detokenize": "Turn tokens into text",
}
_FORMS = {
    "/v1/audio/transcriptions": "Transcribe audio (OpenAI)",
    "/v1/audio/translations": "Translate audio (OpenAI)",
}
_REPLY = Reply("The reply: JSON, or server-sent events if the request asks for a stream.", (Content(),))


def _operation(path: str, summary: str, media_type: str) -> Operation:
    replies = {
        200: _REPLY,
        400: Reply("The request is invalid; the error has the format of the API.", (Content(),)),
        404: Reply("The model is not stored; the error has the format of the API.", (Content(),)),
    }
    return Operation("POST", path, TAG, summary, _SCHEMAS, request=Content(media_type=media_type), replies=replies)


OPERATIONS = (
    *(_operation(path, summary, "application/json") for path, summary in _SUMMARIES.items()),
    *(_operation(path, summary, _FORM) for path, summary in _FORMS.items()),
    Operation(
        "GET",
        "/v1/models",
        TAG,
        "List stored models (OpenAI)",
        replies={200: Reply("The models.", (Content(),))},
    ),
    Operation(
        "GET",
        "/v1/models/{model:path}",
        TAG,
        "Show a model (OpenAI)",
        parameters=(Parameter("model", "path", "The model's name; it may contain slashes.", "smollm2:135m"),),
        replies={
            200: Reply("The model.", (Content(),)),
            404: Reply("The model is not stored; the error has OpenAI's format.", (Content(),)),
        },
    ),
)
