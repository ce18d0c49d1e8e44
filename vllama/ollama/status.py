"""Causes to HTTP statuses: the one place where an error becomes a reply (contract §1.1, §1.2)."""

from __future__ import annotations

import orjson

from vllama.errors import (
    BlobNotFound,
    BodyTooLarge,
    CloudDisabled,
    FormatError,
    KeepsFailing,
    ModelNotFound,
    Overloaded,
    RequestCancelled,
    RequestError,
    ServerStopping,
    TemplateError,
    VllamaError,
)

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"

_STATUSES: tuple[tuple[type[VllamaError], int], ...] = (
    (FormatError, 500),  # as recorded; OptionTypeError is 400 by contract §10
    (TemplateError, 500),  # in a request; `/api/create` answers 400 (contract §1.2)
    (BodyTooLarge, 413),
    (RequestError, 400),
    (ModelNotFound, 404),
    (BlobNotFound, 404),
    (CloudDisabled, 403),
    (Overloaded, 503),
    (KeepsFailing, 503),
    (ServerStopping, 503),
    (RequestCancelled, 499),
)


def status_of(error: VllamaError) -> int:
    """The HTTP status for an error that came before the first chunk; 500 for engine and store errors."""
    for cause, status in _STATUSES:
        if isinstance(error, cause):
            return status
    return 500


def error_body(message: str) -> bytes:
    """`{"error": …}`, the only shape that Ollama's clients know."""
    return orjson.dumps({"error": message})


def error_line(message: str) -> bytes:
    """The line that ends a stream which failed after its first chunk; no `done` line follows."""
    return error_body(message) + b"\n"
