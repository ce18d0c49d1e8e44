"""Verified copies of files, and a check for free disk space."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from vllama.errors import StoreError
from vllama.store.hashing import hash_file
from vllama.store.manifest import ManifestFile
from vllama.store.progress import Progress
from vllama.store.writes import disk_errors, new_file

_CHUNK = 8 << 20
"""Chunk size in bytes; progress is reported after each chunk."""

_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
"""Errors of a link that is impossible: across file systems, or without support for links."""

_SPARE = 64 << 20
"""Bytes to leave free on the disk."""


def copy_checked(
    source: BinaryIO, file: ManifestFile, part: Path, target: Path, status: str
) -> Generator[Progress, None, None]:
    """Copy to `target`, which appears only when it is complete and on disk; until then the bytes are in `part`.

    Raises StoreError if the source does not match `file`, or the disk fails.
    """
    digest, size = hashlib.sha256(), 0
    doing = f"copy to {target}"
    yield _step(status, file, 0)
    with disk_errors(doing):
        part.unlink(missing_ok=True)  # it may be a link: writing to it would damage the other file
    with new_file(part, doing) as out:
        for chunk in chunks_of(source):
            with disk_errors(doing):
                out.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            yield _step(status, file, min(size, file.size))
            if size > file.size:
                break
        with disk_errors(doing):
            out.flush()
            os.fsync(out.fileno())
    is_same = (size, digest.hexdigest()) == (file.size, file.sha256)
    with disk_errors(doing):
        if is_same:
            part.replace(target)
        else:
            part.unlink()
    if not is_same:
        raise StoreError(difference(file, size, digest.hexdigest()))


def chunks_of(source: BinaryIO) -> Iterator[bytes]:
    """Read the open file to its end. Raises StoreError, which names it."""
    try:
        while chunk := source.read(_CHUNK):
            yield chunk
    except OSError as error:
        raise StoreError(f"cannot read {source.name}: {error.strerror}") from error


def link_checked(
    source: Path, file: ManifestFile, part: Path, target: Path, status: str
) -> Generator[Progress, None, bool]:
    """Hard-link instead of copying, with the same checks; return False if the file system does not allow it."""
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
    """Return whether the file exists with the right size and content. Raises StoreError if it cannot be read."""
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
    """Return a message about how a file differs from its size and checksum."""
    if size != file.size:
        return f"{file.path} is damaged: it should have {file.size} bytes, not {'more' if size > file.size else size}"
    return f"{file.path} is damaged: its sha256 should be {file.sha256}, it is {sha256}"


def check_room(directory: Path, needed: int, advice: str) -> None:
    """Raise StoreError if the disk of the directory, which need not exist, has less than `needed` bytes free."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed and needed + _SPARE > free:
        raise StoreError(f"not enough disk space in {directory}: {needed:,} bytes needed, {free:,} free; {advice}")


def _step(status: str, file: ManifestFile, completed: int) -> Progress:
    return Progress(f"{status} {file.path}", f"sha256:{file.sha256}", file.size, completed)
