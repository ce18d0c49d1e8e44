"""Files that clients upload to create models, stored by checksum (contract §1.9).

    ROOT/blobs/sha256-<64 hex>      complete, verified files
    ROOT/blobs/upload-<random>      running uploads, each locked by the receiving process

A blob is removed when a model was created from it, or at the next start of a server if that did not happen within an
hour, as in Ollama.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from vllama.durations import quote
from vllama.errors import RequestError, StoreError
from vllama.store.model_store import new_locked_file, remove_orphan, sync

GRACE_SECONDS = 3600.0
"""Seconds after which the start of a server removes an unused blob."""

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


def parse_digest(text: str) -> str:
    """Return the 64 hex digits of `sha256:…` or `sha256-…`, in lower case. Raises RequestError."""
    match = _DIGEST.fullmatch(text)
    if not match:
        raise RequestError("invalid digest format")
    return match[1].lower()


class Blobs:
    """The uploads in one store's directory. All methods take the 64 hex digits of `parse_digest`."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "blobs"

    def path(self, sha256: str) -> Path:
        """Return the path of the blob, which may not exist."""
        return self._directory / f"sha256-{sha256}"

    def holds(self, sha256: str) -> bool:
        """Return whether the blob exists, and protect it from removal for the next hour."""
        try:
            os.utime(self.path(sha256))
        except OSError:
            return False
        return True

    def receive(self, sha256: str, digest: str) -> Upload:
        """Start an upload; `digest` is its name as spelled by the client. Raises StoreError."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._remove_orphans()
            return Upload(self.path(sha256), digest)
        except OSError as error:
            raise StoreError(f"cannot store blob {digest}: {error}") from error

    def remove(self, sha256: str) -> None:
        """Remove the blob if it exists and is ours."""
        if self._is_ollamas():
            return
        with suppress(OSError):
            self.path(sha256).unlink()

    def prune(self) -> None:
        """Remove uploads of killed processes, and blobs that were not used in time."""
        self._remove_orphans()
        for path in self.unused():
            with suppress(OSError):
                path.unlink()

    def uploads(self) -> Iterator[Path]:
        """Return the files of unfinished uploads, including those of killed processes."""
        return self._directory.glob("upload-*")

    def unused(self) -> Iterator[Path]:
        """Return the blobs that were not used in time; none if Ollama uses the same OLLAMA_MODELS."""
        if self._is_ollamas():
            return
        oldest = time.time() - GRACE_SECONDS
        for path in self._directory.glob("sha256-*"):
            with suppress(OSError):
                if path.stat().st_mtime < oldest:
                    yield path

    def _is_ollamas(self) -> bool:
        """Return whether Ollama uses the same directory: its models are then blobs with the same names."""
        return any((self._directory.parent / name).exists() for name in ("manifests", "manifests-v2"))

    def _remove_orphans(self) -> None:
        for path in self.uploads():
            remove_orphan(path)


class Upload:
    """A file that is being received; it is removed if the `with` block ends without `finish`."""

    def __init__(self, place: Path, digest: str) -> None:
        self._place = place
        self._digest = digest
        self._hash = hashlib.sha256()
        self._temporary, self._file = new_locked_file(place.parent, "upload-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        with suppress(OSError):  # the disk is full, as `write` has reported
            self._file.close()

    def write(self, data: bytes) -> None:
        """Write the next bytes. Raises StoreError."""
        try:
            self._file.write(data)
        except OSError as error:
            raise StoreError(f"cannot store blob {self._digest}: {error}") from error
        self._hash.update(data)

    def finish(self) -> None:
        """Verify and rename the complete file. Raises RequestError if the checksum differs, StoreError."""
        found = self._hash.hexdigest()
        if self._place.name != f"sha256-{found}":
            raise RequestError(f"digest mismatch, expected {quote(self._digest)}, got {quote(f'sha256:{found}')}")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._temporary.replace(self._place)
            sync(self._place.parent)
        except OSError as error:
            raise StoreError(f"cannot store blob {self._digest}: {error}") from error
