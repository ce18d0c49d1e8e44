"""Causes to statuses (contract §1.1, §1.2)."""

from __future__ import annotations

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama import errors
from vllama.errors import VllamaError
from vllama.ollama.status import error_body, error_line, status_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.RequestError("x"), 400),
        (errors.InvalidName(), 400),
        (errors.OptionTypeError("x"), 400),
        (errors.Unsupported("x"), 400),
        (errors.PromptTooLong(), 400),
        (errors.FormatError("x"), 500),
        (errors.SchemaError("/type", "x"), 400),
        (errors.TemplateError("x"), 500),
        (errors.BodyTooLarge(1 << 20), 413),
        (errors.TooManyValues(1), 413),
        (errors.NoRoomForBody(), 503),
        (errors.ModelNotFound("x"), 404),
        (errors.NamedModelNotFound("x"), 404),
        (errors.BlobNotFound("x"), 404),
        (errors.CloudDisabled(), 403),
        (errors.Unauthenticated(), 401),
        (errors.Forbidden("x"), 403),
        (errors.RateLimited("x", 5), 429),
        (errors.Overloaded(), 503),
        (errors.EngineError("x"), 500),
        (errors.LoadFailed("x"), 500),
        (errors.BadEngineFlags("x"), 500),
        (errors.OutOfMemory("x"), 500),
        (errors.SleepFailed("x"), 500),
        (errors.KeepsFailing("x", 2, 5, "y"), 503),
        (errors.NoRoom("x"), 500),
        (errors.ServerStopping(), 503),
        (errors.WorkerDied(), 500),
        (errors.SettingsError("x"), 500),
        (errors.KeysError("x"), 500),
        (errors.UsageError("x"), 500),
        (errors.StoreError("x"), 500),
        (errors.ManifestCorrupt("x"), 500),
        (errors.SourceUnavailable("x"), 500),
    ],
)
def test_a_cause_has_one_status(error: VllamaError, status: int) -> None:
    assert status_of(error) == status


def test_every_cause_that_a_server_can_meet_stands_in_the_table_above() -> None:
    [table] = [mark for mark in test_a_cause_has_one_status.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    tested = {type(error) for error, _ in table.args[1]}
    causes = {value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, VllamaError)}
    assert tested == {cause for cause in causes if not issubclass(cause, errors.ServerError)} - {VllamaError}


@given(st.text())
def test_an_error_is_an_object_with_one_string(message: str) -> None:
    assert json.loads(error_body(message)) == {"error": message}


@given(st.text())
def test_an_error_in_a_stream_is_one_line(message: str) -> None:
    line = error_line(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"error": message}
