"""Example messages of errors that several operations share, by status."""

from __future__ import annotations

from collections.abc import Mapping

from vllama.errors import (
    BodyTooLarge,
    CloudDisabled,
    ModelNotFound,
    NoRoomForBody,
    Overloaded,
    ServerStopping,
    TooManyValues,
    WorkerDied,
)
from vllama.settings import Settings

_DEFAULTS = Settings.from_environment({})

Messages = str | tuple[str, ...]

MODEL = "smollm2:135m"
"""The model of the examples."""

BODY: Mapping[int, Messages] = {
    413: (str(BodyTooLarge(_DEFAULTS.max_body_size)), str(TooManyValues(_DEFAULTS.max_json_values)))
}
"""Errors of routes that read a JSON body which may be large."""

SMALL_BODY: Mapping[int, Messages] = {413: str(BodyTooLarge(_DEFAULTS.max_small_body_size))}
"""Errors of routes that read a small JSON body."""

LOADING: Mapping[int, Messages] = {
    **BODY,
    403: str(CloudDisabled()),
    500: str(WorkerDied()),
    503: (str(Overloaded()), str(NoRoomForBody()), str(ServerStopping())),
}
"""Errors of routes that load a model."""

NOT_FOUND: Mapping[int, Messages] = {404: str(ModelNotFound(MODEL))}

STORE: Mapping[int, Messages] = {500: "cannot write to the model store: No space left on device"}
"""Errors of routes that change the store."""
