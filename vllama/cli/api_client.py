"""The HTTP client of the commands (contract §6.7).

Uses `http.client`, because importing httpx alone takes longer than all of `vllama list`.
"""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

from vllama import __version__, settings_file
from vllama.errors import RequestError, ServerError, ServerRefused, ServerUnreachable
from vllama.keys.credentials import credentials
from vllama.settings import Address

Record = dict[str, Any]
"""One JSON object of a reply."""

CONNECT_TIMEOUT = 10.0
"""Seconds after which an address that does not respond counts as unreachable."""

_HEADERS = {
    "Accept": "application/x-ndjson",
    "Content-Type": "application/json",
    "User-Agent": f"vllama/{__version__} ({platform.machine()} {platform.system().lower()})",
}


class ApiClient:
    """HTTP client for the server at one address; each call opens its own connection.

    All calls raise ServerUnreachable if no server listens, ServerRefused if the server answers
    with an error (a status, or an `error` line in a stream), and ServerError if the connection
    breaks or the reply is not Ollama's.
    """

    def __init__(self, address: Address) -> None:
        if address.scheme not in {"http", "https"}:
            message = f"OLLAMA_HOST: the scheme must be http or https, not {address.scheme!r}"
            raise RequestError(message)
        self.url = address.url
        self._headers = {**_HEADERS, **credentials()}
        self._target = urlsplit(address.url)
        self._path = quote(self._target.path)

    @classmethod
    def from_environment(cls) -> ApiClient:
        """Return a client for the server at OLLAMA_HOST."""
        return cls(settings_file.load(os.environ).address)

    def tags(self) -> list[Record]:
        """Return the stored models."""
        return self._models("/api/tags")

    def ps(self, *, asleep: bool = False) -> list[Record]:
        """Return the loaded models; with `asleep`, a vllama server adds sleeping models and a `state` to each."""
        return self._models("/api/ps?all=true" if asleep else "/api/ps")

    def show(self, name: str, **fields: object) -> Record:
        """Return the server's details of a model; if it is not stored, the error says how to pull it."""
        try:
            return self.post("/api/show", {"model": name, **fields})
        except ServerRefused as error:
            if error.status != 404:
                raise
            message = f"{error}; to fetch it, run `vllama pull {name}`"
            raise ServerRefused(404, message) from error

    def post(self, path: str, body: Record) -> Record:
        """Send a request and return the single record of its reply."""
        with self._exchange("POST", path, body) as response:
            return self._record(response.read())

    def stream(self, path: str, body: Record) -> Generator[Record]:
        """Send a request and yield the records of its reply as they arrive; closing the generator cancels it.

        A stream that ends before its `done:true` record raises ServerError.
        """
        return self._records(path, body, "done", True)

    def pull(self, name: str) -> Generator[Record]:
        """Have the server pull a model, and yield the steps; closing the generator stops the pull."""
        return self._records("/api/pull", {"model": name}, "status", "success")

    def _records(self, path: str, body: Record, key: str, last: object) -> Generator[Record]:
        """Yield the records of a stream, whose last one has this value under `key`."""
        with self._exchange("POST", path, body) as response:
            record: Record = {}
            for line in response:
                record = self._record(line)
                if "error" in record:
                    raise ServerRefused(response.status, str(record["error"]))
                yield record
        if record.get(key) != last:
            message = f"{self.url} ended its reply before it was complete; the server's log may say why"
            raise ServerError(message)

    def _models(self, path: str) -> list[Record]:
        with self._exchange("GET", path) as response:
            models = self._record(response.read()).get("models")
        return models if isinstance(models, list) else []

    @contextmanager
    def _exchange(self, method: str, path: str, body: Record | None = None) -> Iterator[HTTPResponse]:
        connection = self._connect()
        try:
            payload = None if body is None else json.dumps(body, ensure_ascii=False).encode()
            connection.request(method, self._path + path, payload, self._headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise ServerRefused(response.status, _error_text(response))
            yield response
        except (OSError, HTTPException) as error:
            message = f"lost the connection to {self.url}: {str(error) or type(error).__name__}"
            raise ServerError(message) from error
        finally:
            connection.close()

    def _connect(self) -> HTTPConnection:
        kind = HTTPSConnection if self._target.scheme == "https" else HTTPConnection
        connection = kind(self._target.hostname or "", self._target.port, timeout=CONNECT_TIMEOUT)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            message = (
                f"could not connect to {self.url} ({reason.lower()}); "
                "is the server running? Start it with `vllama serve`"
            )
            raise ServerUnreachable(message) from error
        connection.sock.settimeout(None)  # a model may take minutes to load and longer to answer
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    def _record(self, text: bytes) -> Record:
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            shown = text[:80].decode(errors="replace").strip()
            message = f"{self.url} did not reply like an Ollama server: {shown!r}; check OLLAMA_HOST"
            raise ServerError(message)
        return record


def _error_text(response: HTTPResponse) -> str:
    """Return the `error` of a reply with an error status, else its text or its reason."""
    body = response.read()
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body[:500].decode(errors="replace").strip()
        shown = text if text and not text.startswith("<") else response.reason
        return f"{response.status} {shown}" if not shown.startswith(str(response.status)) else shown
