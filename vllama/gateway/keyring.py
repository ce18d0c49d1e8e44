"""The keys in force: read from the key file, and again soon after each of its changes."""

from __future__ import annotations

import logging
from pathlib import Path

from vllama.errors import KeysError
from vllama.keys.key import Key
from vllama.keys.key_file import KeyFile, Version

log = logging.getLogger(__name__)

_INTERVAL = 1_000_000_000
"""Nanoseconds between two looks at the file; a request looks at most once in that time."""


class Keyring:
    """The keys by the digests of their secrets. `is_on` says whether requests need one."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises KeysError if it is invalid; a missing file means that no keys are set up."""
        self._file = KeyFile(path)
        self._version: Version | None = None
        self._keys: dict[str, Key] = {}
        self._next_look = 0
        self._problem = ""
        self.is_on = False
        self._read()

    def find(self, digest: str) -> Key | None:
        """Return the key whose secret has this SHA-256."""
        return self._keys.get(digest)

    def look(self, now: int) -> None:
        """Read the file again if it has changed; `now` is in monotonic ns. Keeps the keys if it is invalid."""
        if now < self._next_look:
            return
        self._next_look = now + _INTERVAL
        try:
            if self._file.version() != self._version:
                self._read()
            self._problem = ""
        except KeysError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.error("kept the API keys that were read before: %s", error)  # noqa: TRY400 - for the user

    def adopt(self, path: Path) -> None:
        """Use the file at this path from now on, and look at it with the next request."""
        if path != self._file.path:
            self._file, self._version = KeyFile(path), None
        self._next_look = 0

    def _read(self) -> None:
        version = self._file.version()
        keys = self._file.read()
        if keys is None:
            if self.is_on:
                raise KeysError(f"{self._file.path} is missing; without it, a restarted server needs no keys")
            return
        self._version, self._keys, self.is_on = version, {key.digest: key for key in keys}, True
        log.info("%d API keys are in force (%s)", len(keys), self._file.path)
