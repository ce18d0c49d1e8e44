"""Checksums of bytes and files, with progress for long ones."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from pathlib import Path

from vllama.errors import StoreError
from vllama.store.foreign_files import open_regular
from vllama.store.manifest import ManifestFile
from vllama.store.progress import Progress

_CHUNK, _REPORT = 8 << 20, 256 << 20
"""Chunk size, and bytes between two progress reports."""


def sha256_of(data: bytes) -> str:
    """Return the checksum, 64 hex."""
    return hashlib.sha256(data).hexdigest()


def hash_files(directory: Path, paths: Iterable[str]) -> Generator[Progress, None, tuple[ManifestFile, ...]]:
    """Hash the files at these paths relative to `directory` and return them. Raises StoreError."""
    files: tuple[ManifestFile, ...] = ()
    for path in paths:
        files += ((yield from hash_file(directory, path)),)
    return files


def hash_file(directory: Path, path: str) -> Generator[Progress, None, ManifestFile]:
    """Return size and checksum of one file. Raises StoreError."""
    digest, size = hashlib.sha256(), 0
    try:
        total = (directory / path).stat().st_size
        with open_regular(directory / path) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if size // _REPORT > (size - len(chunk)) // _REPORT:
                    yield Progress(f"hashing {path}", total=total, completed=size)
    except OSError as error:
        raise StoreError(f"cannot read {directory / path}: {error}") from error
    return ManifestFile(path, size, digest.hexdigest())
