"""Records and operations of `/api/embed` and `/api/embeddings`."""

from __future__ import annotations

from collections.abc import Mapping

from vllama.gateway.openapi import errors
from vllama.gateway.openapi.inference import TAG, Timings
from vllama.gateway.openapi.operation import Content, Operation, Reply
from vllama.gateway.openapi.options import Options
from vllama.gateway.openapi.records import KeepAlive, Record

_MODEL = "all-minilm"


class _Common(Record):
    model: str
    """Name of an embedding model."""
    keep_alive: KeepAlive = None
    options: Options | None = None
    """Options; only `num_ctx` has an effect, as the maximum number of tokens of a text."""


class EmbedRequest(_Common):
    """A request of `/api/embed`. Without texts, it only loads the model, or unloads it if `keep_alive` is 0."""

    input: str | list[str] | None = ""
    """One text or several."""
    truncate: bool | None = True
    """Whether to truncate texts that exceed the context, instead of refusing them."""
    dimensions: int | None = 0
    """Length to which vectors are shortened; below 1 means their full length."""


class EmbedReply(Timings):
    """The reply of `/api/embed`."""

    model: str
    """The model's name in the request's spelling."""
    embeddings: list[list[float]]
    """One vector of length 1 for each text, in the order of the texts."""


class EmbeddingsRequest(_Common):
    """A request of `/api/embeddings`. Without a prompt, it only loads the model, or unloads it."""

    prompt: str | None = ""
    """Text to embed."""


class EmbeddingsReply(Record):
    """The reply of `/api/embeddings`."""

    embedding: list[float]
    """The vector as the model computes it, not normalised; empty if there was no text."""


_ERRORS: Mapping[int, errors.Messages] = {
    400: (f'"{_MODEL}" does not support embeddings', "invalid input type"),
    404: f'model "{_MODEL}" not found, try pulling it first',
    **errors.LOADING,
}

OPERATIONS = (
    Operation(
        "POST",
        "/api/embed",
        TAG,
        "Embed texts",
        request=Content(
            EmbedRequest,
            {
                "One text": {"model": _MODEL, "input": "Why is the sky blue?"},
                "Several texts": {"model": _MODEL, "input": ["Why is the sky blue?", "Why is grass green?"]},
            },
        ),
        replies={
            200: Reply(
                "The vectors.",
                (
                    Content(
                        EmbedReply,
                        {
                            "One text": {
                                "model": _MODEL,
                                "embeddings": [[0.6, 0.8, 0.0]],
                                "total_duration": 14143917,
                                "load_duration": 1019500,
                                "prompt_eval_count": 8,
                            }
                        },
                    ),
                ),
            )
        },
        errors=_ERRORS,
    ),
    Operation(
        "POST",
        "/api/embeddings",
        TAG,
        "Embed one text",
        "The predecessor of `/api/embed`, for clients that still use it.",
        request=Content(EmbeddingsRequest, {"One text": {"model": _MODEL, "prompt": "Why is the sky blue?"}}),
        replies={200: Reply("The vector.", (Content(EmbeddingsReply, {"One text": {"embedding": [1.2, 1.6, 0.0]}}),))},
        errors={**_ERRORS, 400: ("model is required", f'"{_MODEL}" does not support embeddings')},
    ),
)
