"""Download of one file over HTTP: resumed after a kill, retried after network errors, and verified.

huggingface_hub's own download restarts after a kill (its temporary file has a new name each time), cannot get more than
50 GB over plain HTTP, and does not verify checksums. So it is used for names, tokens and listings only.
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
from typing import TYPE_CHECKING, BinaryIO

from vllama.errors import SourceUnavailable
from vllama.store.sources.hub_errors import (
    LONGEST_WAIT,
    TRANSIENT,
    Asked,
    explain,
    is_unresolved,
    undeliverable,
    unreachable,
)
from vllama.store.sources.hub_listing import RemoteFile
from vllama.store.writes import store_writes

if TYPE_CHECKING:
    import httpx

_CHUNK = 256 << 10
_SPAN = 16 << 30
"""Bytes per request: a content network refuses to send more than 50 GB in one reply."""

_RANGE = re.compile(r"bytes (\d+)-(\d+)")

PART, LINKED = ".part", ".linked"
"""Ends of names beside a file's place: what was fetched of it so far, and a link to a file that should be the same."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Number of retries without progress, and seconds before the first one, doubled each time.

    A host name that does not resolve is given up after `resolving` seconds: a user waits for that message, and the name
    rarely appears within a minute.
    """

    attempts: int = 6
    seconds: float = 0.5
    resolving: float = 1.0

    def wait(self, attempt: int, retry_after: str = "") -> float:
        """Return the seconds to wait before this attempt, counted from 1; Retry-After is honoured."""
        wished = float(retry_after) if retry_after.isdigit() else 0.0
        return max(wished, min(self.seconds * 2.0 ** (attempt - 1), LONGEST_WAIT))

    def is_over(self, attempt: int, wait: float, error: Exception, failing_for: float) -> bool:
        """Return whether to give up after this error, `failing_for` seconds after the last progress."""
        if attempt > self.attempts or wait > LONGEST_WAIT:
            return True
        return is_unresolved(error) and failing_for > self.resolving


class Transfer:
    """Downloader for the files of one repository; threads may share it."""

    def __init__(self, client: httpx.Client, asked: Asked, headers: Mapping[str, str], patience: Patience) -> None:
        self._client = client
        self._asked = asked
        # With compression, byte ranges would not match positions in the file.
        self._headers = {**headers, "accept-encoding": "identity"}
        self._patience = patience

    def fetch(self, file: RemoteFile, url: str, place: Path, report: Callable[[int], None]) -> str:
        """Leave the whole file, checked, at `place` and return its sha256.

        Content that is present already is reused if its checksum matches: the file itself, a link to it (LINKED), or a
        part of it (PART). `report` is called with the number of bytes present. Raises SourceUnavailable if the file
        cannot be fetched as listed, StoreError if the disk fails.
        """
        link, part = beside(place, LINKED), beside(place, PART)
        if not file.has_checksum:
            for old in (link, part):
                with store_writes():
                    old.unlink(missing_ok=True)
        elif place.exists() and file.size in {None, place.stat().st_size}:  # it was verified before it got that name
            report(place.stat().st_size)
            return file.sha256 or _sha256_of(place)
        elif link.exists() and (sha256 := _take_link(file, link, place, report)):
            return sha256
        for _ in range(2):
            with _locked(part) as out:
                sums = _Sums(file)
                resumed = sums.read(out, report)
                if file.size is not None and sums.size > file.size:
                    sums.restart(out)
                self._receive(file, url, out, sums, report)
                with store_writes():
                    out.flush()
                    os.fsync(out.fileno())
            is_same = sums.match(part)
            with store_writes():
                if is_same:
                    part.replace(place)
                    return sums.sha256
                part.unlink()
            if not resumed:
                break
        size = "" if file.size is None else f" and {file.size} bytes"
        raise SourceUnavailable(
            f"digest mismatch: {file.path} of '{self._asked.repository}' should have sha256 "
            f"{file.sha256 or '(unknown)'}{size}, got {sums.sha256} and {sums.size} bytes; "
            "the mirror or a proxy serves a different file; try again or use another mirror"
        )

    def _receive(self, file: RemoteFile, url: str, out: BinaryIO, sums: _Sums, report: Callable[[int], None]) -> None:
        # Imported here: the server imports this module at its start, and only the process that pulls uses httpx.
        import httpx

        attempt, since = 0, time.monotonic()
        is_complete = file.size is not None and sums.size >= file.size
        while not is_complete:
            before, retry_after = sums.size, ""
            try:
                is_complete = self._receive_span(file, url, out, sums, report)
                of = "" if file.size is None else f" of {file.size}"
                failure: Exception = SourceUnavailable(f"{file.path} ends after {sums.size}{of} bytes")
            except httpx.TransportError as error:
                failure = SourceUnavailable(unreachable(self._asked, error))
                failure.__cause__ = error
            except httpx.RequestError as error:
                raise SourceUnavailable(undeliverable(self._asked, file.path, error)) from error
            except _TryAgain as error:
                failure, retry_after = SourceUnavailable(str(error)), error.retry_after
            attempt, since = (0, time.monotonic()) if sums.size > before else (attempt + 1, since)
            wait = self._patience.wait(max(attempt, 1), retry_after)
            if is_complete:
                return
            if self._patience.is_over(attempt, wait, failure, time.monotonic() - since):
                raise failure
            if attempt:
                time.sleep(wait)

    def _receive_span(
        self, file: RemoteFile, url: str, out: BinaryIO, sums: _Sums, report: Callable[[int], None]
    ) -> bool:
        """Append what one answer brings, and return whether that was the last of the file.

        Raises httpx.RequestError, _TryAgain, SourceUnavailable or StoreError.
        """
        last = sums.size + _SPAN - 1
        if file.size is not None:
            last = min(last, file.size - 1)
        headers = {**self._headers, "range": f"bytes={sums.size}-{last}"}
        with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code == 416 and file.size is None:  # nothing is left to ask for
                return True
            if answer.status_code in TRANSIENT:
                raise _TryAgain(self._explain(answer), answer.headers.get("retry-after", ""))
            if answer.status_code not in {200, 206}:
                raise SourceUnavailable(self._explain(answer))
            if answer.status_code == 200 and sums.size:  # a server without support for ranges sends the whole file
                sums.restart(out)
            first, end = _range(answer)
            if answer.status_code == 206 and first != sums.size:
                raise _TryAgain(f"{self._asked.endpoint} sent a different part of {file.path} than requested")
            for chunk in answer.iter_raw(_CHUNK):
                with store_writes():
                    out.write(chunk)
                sums.add(chunk)
                report(sums.size)
                if file.size is not None and sums.size > file.size:
                    break
            if file.size is not None:
                return sums.size >= file.size
            return answer.status_code == 200 or end < last  # less than was asked for: the file ends there

    def _explain(self, answer: httpx.Response) -> str:
        return explain(self._asked, answer.status_code, answer.headers)


class _TryAgain(Exception):
    def __init__(self, message: str, retry_after: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _Sums:
    """The size and the sha256 of a file as it grows."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._reset()

    def _reset(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._sha256.update(chunk)

    def read(self, file: BinaryIO, report: Callable[[int], None]) -> bool:
        """Add what is in the open file, and leave it at its end; return whether there was anything."""
        while chunk := file.read(_CHUNK):
            self.add(chunk)
            report(self.size)
        return self.size > 0

    def restart(self, out: BinaryIO) -> None:
        with store_writes():
            out.seek(0)
            out.truncate()
        self._reset()

    def match(self, path: Path) -> bool:
        """Return whether these are the sums of the listed file; `path` is where it lies."""
        file = self._file
        if file.size is not None and self.size != file.size:
            return False
        if file.sha256:
            return self.sha256 == file.sha256
        return not file.git_sha1 or _git_sha1_of(path, self.size) == file.git_sha1


def beside(place: Path, suffix: str) -> Path:
    """Return the path of PART or LINKED beside the place of a file."""
    return place.with_name(f"{place.name}{suffix}")


def _take_link(file: RemoteFile, link: Path, place: Path, report: Callable[[int], None]) -> str:
    """Move the link to `place` and return its sha256; remove it and return "" where it is another file."""
    sums = _Sums(file)
    with link.open("rb") as source:  # never for writing: the bytes are another model's, too
        sums.read(source, report)
    is_same = sums.match(link)
    with store_writes():
        if is_same:
            link.replace(place)
            return sums.sha256
        link.unlink()
    return ""


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """Open our own part for reading and writing; a process that outlived its parent finishes with it first."""
    with store_writes():
        if part.exists() and part.stat().st_nlink > 1:  # an older version may have left a link under this name
            part.unlink()
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b")
    try:
        with store_writes():
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        with store_writes():  # what is buffered is written now
            file.close()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1_of(path: Path, size: int) -> str:
    """Return git's checksum of a file, which begins with its size."""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _range(answer: httpx.Response) -> tuple[int, int]:
    """Return the first and the last place in the file that a 206 has; -1 where it does not say."""
    match = _RANGE.match(answer.headers.get("content-range", ""))
    return (int(match[1]), int(match[2])) if match else (-1, -1)
