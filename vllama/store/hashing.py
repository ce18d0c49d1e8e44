"""Bytes and files to their checksums, with a sign of life where that takes long."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from pathlib import Path

from vllama.errors import StoreError
from vllama.store.manifest import ManifestFile
from vllama.store.progress import Progress

_CHUNK, _REPORT = 8 << 20, 256 << 20
"""Bytes read at a time, and bytes between two reports while hashing."""


def sha256_of(data: bytes) -> str:
    """Return the checksum, 64 hex."""
    return hashlib.sha256(data).hexdigest()


def hash_files(directory: Path, paths: Iterable[str]) -> Generator[Progress, None, tuple[ManifestFile, ...]]:
    """Return the files of these paths relative to `directory`. Raises StoreError."""
    files: tuple[ManifestFile, ...] = ()
    for path in paths:
        files += ((yield from hash_file(directory, path)),)
    return files


def hash_file(directory: Path, path: str) -> Generator[Progress, None, ManifestFile]:
    """Return size and checksum of one file. Raises StoreError."""
    digest, size = hashlib.sha256(), 0
    try:
        total = (directory / path).stat().st_size
        with (directory / path).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if size // _REPORT > (size - len(chunk)) // _REPORT:
                    yield Progress(f"hashing {path}", total=total, completed=size)
    except OSError as error:
        raise StoreError(f"cannot read {directory / path}: {error}") from error
    return ManifestFile(path, size, digest.hexdigest())
