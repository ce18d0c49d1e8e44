"""How far the load is that a request waits for, on the terminal."""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread
from typing import Self, TextIO

from vllama.cli.client import Client, Record
from vllama.cli.output import Spinner
from vllama.errors import VllamaError
from vllama.names import ModelName

_LOOK_SECONDS = 1.0
"""Between two looks; answers that come sooner are not looked behind at all."""


class LoadSpinner(Spinner):
    """A spinner that says what the model's load is at, where there is one; `message` is what it says besides."""

    def __init__(self, client: Client, model: str, message: str = "", stream: TextIO | None = None) -> None:
        super().__init__(message, stream)
        self._client = client
        self._key = ModelName.parse(model).key
        self._plain = message or f"loading {model}"
        self._left = Event()

    def __enter__(self) -> Self:
        super().__enter__()
        if self.is_shown:
            # Nobody waits for this thread: it may hang in a request to a server that has stopped to answer.
            Thread(target=self._watch, daemon=True).start()
        return self

    def stop(self) -> None:
        """Take the spinner off the screen, and look no more."""
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
    """Return what the load of a row of `/api/ps` is at: `weights 40%`; "" where the model is loaded."""
    load = model.get("load")
    if not isinstance(load, dict):
        return ""
    percent = load.get("percent")
    return str(load.get("phase", "")) + (f" {percent}%" if percent is not None else "")
