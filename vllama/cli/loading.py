"""Terminal display of the load that a request waits for."""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread
from typing import Self, TextIO

from vllama.cli.api_client import ApiClient, Record
from vllama.cli.output import Spinner
from vllama.errors import VllamaError
from vllama.names import ModelName

_LOOK_SECONDS = 1.0
"""Seconds between two polls; replies that start sooner cause no poll."""


class LoadSpinner(Spinner):
    """A spinner that shows the load phase of a model, if it is being loaded, after `message`."""

    def __init__(self, client: ApiClient, model: str, message: str = "", stream: TextIO | None = None) -> None:
        super().__init__(message, stream)
        self._client = client
        self._key = ModelName.parse(model).key
        self._plain = message or f"loading {model}"
        self._left = Event()

    def __enter__(self) -> Self:
        super().__enter__()
        if self.is_shown:
            # A daemon, never joined: it may hang in a request to a server that no longer responds.
            Thread(target=self._watch, daemon=True).start()
        return self

    def stop(self) -> None:
        """Remove the spinner from the screen and stop polling."""
        self._left.set()
        super().stop()

    def _watch(self) -> None:
        while not self._left.wait(_LOOK_SECONDS):
            with suppress(VllamaError, ValueError):
                if told := next(filter(None, map(self._told, self._client.ps())), ""):
                    self.message = f"{self._plain}: {told}"

    def _told(self, model: Record) -> str:
        return load_text(model) if ModelName.parse(str(model.get("name"))).key == self._key else ""


def load_text(model: Record) -> str:
    """Return the load phase from a row of `/api/ps`, such as `weights 40%`; "" if the model is loaded."""
    load = model.get("load")
    if not isinstance(load, dict):
        return ""
    percent = load.get("percent")
    return str(load.get("phase", "")) + (f" {percent}%" if percent is not None else "")
