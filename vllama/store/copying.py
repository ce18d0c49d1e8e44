"""Copies whose bytes are checked on the way, and the room for them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from vllama.errors import StoreError
from vllama.store.hashing import hash_file
from vllama.store.manifest import ManifestFile
from vllama.store.progress import Progress

_CHUNK = 8 << 20
"""Bytes read at a time; each is reported."""

_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
"""What a file system answers that cannot have the link: it is another one, or has no links."""

_SPARE = 64 << 20
"""Bytes that are left free on the disk."""


def copy_checked(
    source: BinaryIO, file: ManifestFile, part: Path, target: Path, status: str
) -> Generator[Progress, None, None]:
    """Copy to `target`, which appears only when it is whole and on disk; until then the bytes are in `part`.

    Raises StoreError where the source is not `file`, or the disk fails.
    """
    digest, size = hashlib.sha256(), 0
    yield _step(status, file, 0)
    try:
        part.unlink(missing_ok=True)  # it may be a link: to write there would damage the other file
        with part.open("xb") as out:
            while size <= file.size and (chunk := source.read(_CHUNK)):
                out.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                yield _step(status, file, min(size, file.size))
            out.flush()
            os.fsync(out.fileno())
        if (size, digest.hexdigest()) != (file.size, file.sha256):
            part.unlink()
            raise StoreError(difference(file, size, digest.hexdigest()))
        part.replace(target)
    except OSError as error:
        raise StoreError(f"cannot copy to {target}: {error.strerror}") from error


def link_checked(
    source: Path, file: ManifestFile, part: Path, target: Path, status: str
) -> Generator[Progress, None, bool]:
    """Do the same with a hard link; False where the file system cannot have it."""
    try:
        part.unlink(missing_ok=True)
        os.link(source, part, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise StoreError(f"cannot link {source} to {target}: {error.strerror}") from error
    yield _step(status, file, 0)
    found = yield from hash_file(part.parent, part.name)
    if (found.size, found.sha256) != (file.size, file.sha256):
        part.unlink()
        raise StoreError(difference(file, found.size, found.sha256))
    part.replace(target)
    yield _step(status, file, file.size)
    return True


def is_whole(path: Path, file: ManifestFile) -> Generator[Progress, None, bool]:
    """Whether the file is there, of the right size and content. Raises StoreError where it cannot be read."""
    try:
        if path.stat().st_size != file.size:
            return False
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    found = yield from hash_file(path.parent, path.name)
    return found.sha256 == file.sha256


def difference(file: ManifestFile, size: int, sha256: str) -> str:
    """Say how a file differs from what it should be."""
    if size != file.size:
        return f"{file.path} is damaged: it should have {file.size} bytes, not {'more' if size > file.size else size}"
    return f"{file.path} is damaged: its sha256 should be {file.sha256}, it is {sha256}"


def check_room(directory: Path, needed: int, advice: str) -> None:
    """Raise StoreError where the disk of the directory, which need not exist yet, lacks room for `needed` bytes."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed and needed + _SPARE > free:
        raise StoreError(f"no room in {directory}: {needed:,} bytes are needed, {free:,} are free; {advice}")


def _step(status: str, file: ManifestFile, completed: int) -> Progress:
    return Progress(f"{status} {file.path}", f"sha256:{file.sha256}", file.size, completed)
