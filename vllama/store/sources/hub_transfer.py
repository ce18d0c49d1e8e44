"""One file over HTTP: resumed where an earlier process was killed, asked for again where the network fails, checked.

huggingface_hub's own download begins anew after a kill (its temporary file is another one each time), cannot get more
than 50 GB over plain HTTP, and checks no sums. So the bytes are fetched here; names, tokens and listings are its work.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from vllama.errors import SourceUnavailable
from vllama.store.sources.hub_errors import LONGEST_WAIT, TRANSIENT, Asked, explain, unreachable
from vllama.store.sources.hub_listing import RemoteFile

_CHUNK = 256 << 10
_SPAN = 16 << 30
"""Bytes asked for at once: a content network refuses to send more than 50 GB in one answer."""

_RANGE = re.compile(r"bytes (\d+)-")


@dataclass(frozen=True, slots=True)
class Patience:
    """How often to ask again without a byte of progress, and the seconds before the first time; they double."""

    attempts: int = 6
    seconds: float = 0.5

    def wait(self, attempt: int, retry_after: str = "") -> float:
        """Return the seconds before this attempt, counted from 1; the server's wish is granted."""
        wished = float(retry_after) if retry_after.isdigit() else 0.0
        return max(wished, min(self.seconds * 2.0 ** (attempt - 1), LONGEST_WAIT))


class Transfer:
    """Fetches the files of one repository. Threads may share it."""

    def __init__(self, client: httpx.Client, asked: Asked, headers: Mapping[str, str], patience: Patience) -> None:
        self._client = client
        self._asked = asked
        # Compressed, a part of a file could not be told from its place in the whole.
        self._headers = {**headers, "accept-encoding": "identity"}
        self._patience = patience

    def fetch(self, file: RemoteFile, url: str, place: Path, report: Callable[[int], None]) -> str:
        """Leave the whole file, checked, at `place` and return its sha256; what is there already is kept.

        Until then it is `place` with ".part" at its end. `report` is told the bytes that are here. Raises
        SourceUnavailable where the file cannot be had as listed, OSError where the disk fails.
        """
        if place.exists() and place.stat().st_size == file.size:  # it was checked before it had that name
            report(file.size)
            return file.sha256 or hashlib.sha256(place.read_bytes()).hexdigest()
        part = place.with_name(f"{place.name}.part")
        for _ in range(2):
            with _locked(part) as out:
                sums = _Sums(file)
                resumed = sums.read(out, report)
                self._receive(file, url, out, sums, report)
                os.fsync(out.fileno())
            if sums.match():
                part.replace(place)
                return sums.sha256
            part.unlink()
            if not resumed:
                break
        raise SourceUnavailable(
            f"digest mismatch: {file.path} of '{self._asked.repository}' should have sha256 "
            f"{file.sha256 or '(unknown)'} and {file.size} bytes, got {sums.sha256} and {sums.size}; "
            "the file must be downloaded again: the mirror or a proxy serves another one"
        )

    def _receive(self, file: RemoteFile, url: str, out: BinaryIO, sums: _Sums, report: Callable[[int], None]) -> None:
        attempt = 0
        while sums.size < file.size:
            before, retry_after = sums.size, ""
            try:
                self._receive_span(file, url, out, sums, report)
                failure: Exception = SourceUnavailable(f"{file.path} ends after {sums.size} of {file.size} bytes")
            except httpx.TransportError as error:
                failure = SourceUnavailable(unreachable(self._asked, error))
            except _TryAgain as error:
                failure, retry_after = SourceUnavailable(str(error)), error.retry_after
            attempt = 0 if sums.size > before else attempt + 1
            wait = self._patience.wait(max(attempt, 1), retry_after)
            if attempt > self._patience.attempts or wait > LONGEST_WAIT:
                raise failure
            if attempt:
                time.sleep(wait)

    def _receive_span(
        self, file: RemoteFile, url: str, out: BinaryIO, sums: _Sums, report: Callable[[int], None]
    ) -> None:
        """Append what one answer brings. Raises httpx.TransportError, _TryAgain or SourceUnavailable."""
        last = min(sums.size + _SPAN, file.size) - 1
        headers = {**self._headers, "range": f"bytes={sums.size}-{last}"}
        with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code in TRANSIENT:
                raise _TryAgain(self._explain(answer), answer.headers.get("retry-after", ""))
            if answer.status_code not in {200, 206}:
                raise SourceUnavailable(self._explain(answer))
            if answer.status_code == 200 and sums.size:  # a server that knows no ranges sends all of it
                sums.restart(out)
            elif answer.status_code == 206 and _start(answer) != sums.size:
                raise _TryAgain(f"{self._asked.endpoint} sent another part of {file.path} than was asked for")
            for chunk in answer.iter_raw(_CHUNK):
                out.write(chunk)
                sums.add(chunk)
                report(sums.size)
                if sums.size > file.size:
                    break

    def _explain(self, answer: httpx.Response) -> str:
        return explain(self._asked, answer.status_code, answer.headers)


class _TryAgain(Exception):
    def __init__(self, message: str, retry_after: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _Sums:
    """The sums of a file as it grows: sha256, and git's own for files that are not LFS."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._reset()

    def _reset(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % self._file.size, usedforsecurity=False)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._sha256.update(chunk)
        if self._file.git_sha1 and not self._file.sha256:
            self._git.update(chunk)

    def read(self, out: BinaryIO, report: Callable[[int], None]) -> bool:
        """Take over what is there, and leave the file open at its end; whether there was anything."""
        while chunk := out.read(_CHUNK):
            self.add(chunk)
            report(self.size)
        if self.size > self._file.size:
            self.restart(out)
        return self.size > 0

    def restart(self, out: BinaryIO) -> None:
        out.seek(0)
        out.truncate()
        self._reset()

    def match(self) -> bool:
        file = self._file
        if self.size != file.size:
            return False
        if file.sha256:
            return self.sha256 == file.sha256
        return not file.git_sha1 or self._git.hexdigest() == file.git_sha1


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """Open the file for reading and writing; a process that outlived its parent finishes with it first."""
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _start(answer: httpx.Response) -> int | None:
    """Return the place in the file where a 206 begins; None where it does not say."""
    match = _RANGE.match(answer.headers.get("content-range", ""))
    return int(match[1]) if match else None
