"""Files that clients upload to make models of, under their own checksum (contract §1.9).

    ROOT/blobs/sha256-<64 hex>      whole files, verified
    ROOT/blobs/upload-<random>      uploads under way, each locked by the process that receives it

A blob goes when a model was created of it. One that no model was made of within an hour goes when a server
starts, as with Ollama.
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
"""How long a blob waits for a model to be made of it before a start of a server removes it."""

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


def parse_digest(text: str) -> str:
    """Return the 64 hex digits of `sha256:…` or `sha256-…`, in lower case. Raises RequestError."""
    match = _DIGEST.fullmatch(text)
    if not match:
        raise RequestError("invalid digest format")
    return match[1].lower()


class Blobs:
    """The uploads under one store's directory. All methods take the 64 hex digits of `parse_digest`."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "blobs"

    def path(self, sha256: str) -> Path:
        """Return where the blob is, or would be."""
        return self._directory / f"sha256-{sha256}"

    def holds(self, sha256: str) -> bool:
        """Whether the blob is here; one that was asked for is not removed within the next hour."""
        try:
            os.utime(self.path(sha256))
        except OSError:
            return False
        return True

    def receive(self, sha256: str, digest: str) -> Upload:
        """Begin an upload; `digest` is its name as the client spelled it. Raises StoreError."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._remove_orphans()
            return Upload(self.path(sha256), digest)
        except OSError as error:
            raise StoreError(f"cannot store the blob {digest}: {error}") from error

    def remove(self, sha256: str) -> None:
        """Forget the blob, if it is here and ours."""
        if self._is_ollamas():
            return
        with suppress(OSError):
            self.path(sha256).unlink()

    def prune(self) -> None:
        """Remove what a killed process left, and blobs of which nothing was made in time."""
        self._remove_orphans()
        for path in self.unused():
            with suppress(OSError):
                path.unlink()

    def uploads(self) -> Iterator[Path]:
        """Return the files of uploads that have not ended, or whose receiver was killed."""
        return self._directory.glob("upload-*")

    def unused(self) -> Iterator[Path]:
        """Return the blobs of which nothing was made in time; none where OLLAMA_MODELS is that of an Ollama, too."""
        if self._is_ollamas():
            return
        oldest = time.time() - GRACE_SECONDS
        for path in self._directory.glob("sha256-*"):
            with suppress(OSError):
                if path.stat().st_mtime < oldest:
                    yield path

    def _is_ollamas(self) -> bool:
        """Whether the directory is shared with Ollama: the blobs, of the same names, are its models then."""
        return any((self._directory.parent / name).exists() for name in ("manifests", "manifests-v2"))

    def _remove_orphans(self) -> None:
        for path in self.uploads():
            remove_orphan(path)


class Upload:
    """A file that is being received. Leave the `with` block without `finish`, and nothing of it stays."""

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
        with suppress(OSError):  # a full disk, which `write` has reported
            self._file.close()

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises StoreError."""
        try:
            self._file.write(data)
        except OSError as error:
            raise StoreError(f"cannot store the blob {self._digest}: {error}") from error
        self._hash.update(data)

    def finish(self) -> None:
        """Give the whole file its name. Raises RequestError where it is another file, StoreError."""
        found = self._hash.hexdigest()
        if self._place.name != f"sha256-{found}":
            raise RequestError(f"digest mismatch, expected {quote(self._digest)}, got {quote(f'sha256:{found}')}")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._temporary.replace(self._place)
            sync(self._place.parent)
        except OSError as error:
            raise StoreError(f"cannot store the blob {self._digest}: {error}") from error
