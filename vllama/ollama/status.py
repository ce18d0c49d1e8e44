"""Mapping from errors to HTTP statuses and error bodies (contract §1.1, §1.2)."""

from __future__ import annotations

import orjson

from vllama.errors import (
    BlobNotFound,
    BodyTooLarge,
    CloudDisabled,
    Forbidden,
    FormatError,
    KeepsFailing,
    ModelNotFound,
    NoRoomForBody,
    Overloaded,
    RateLimited,
    RequestError,
    ServerStopping,
    TemplateError,
    TooManyValues,
    Unauthenticated,
    VllamaError,
)

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"

_STATUSES: tuple[tuple[type[VllamaError], int], ...] = (
    (FormatError, 500),  # as recorded; OptionTypeError is 400 by contract §10
    (TemplateError, 500),  # in a request; `/api/create` answers 400 (contract §1.2)
    (BodyTooLarge, 413),
    (TooManyValues, 413),
    (RequestError, 400),
    (ModelNotFound, 404),
    (BlobNotFound, 404),
    (CloudDisabled, 403),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (RateLimited, 429),
    (Overloaded, 503),
    (NoRoomForBody, 503),
    (KeepsFailing, 503),
    (ServerStopping, 503),
)


def status_of(error: VllamaError) -> int:
    """Return the HTTP status for an error before the first chunk; 500 for engine and store errors."""
    for cause, status in _STATUSES:
        if isinstance(error, cause):
            return status
    return 500


def error_body(message: str) -> bytes:
    """Return `{"error": …}`, the only error body that Ollama's clients understand."""
    return orjson.dumps({"error": message})


def error_line(message: str) -> bytes:
    """Return the line that ends a stream that failed after its first chunk; no `done` line follows."""
    return error_body(message) + b"\n"
