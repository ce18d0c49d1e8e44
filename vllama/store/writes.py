"""Tell failed writes to the disk from every other OSError: a broken pipe, a socket, a file of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vllama.errors import StoreError


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Raise StoreError, "cannot `doing`: …", where the block fails with an OSError.

    Keep the block to the file operations that `doing` names.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {doing}: {error}") from error


@contextmanager
def store_writes() -> Iterator[None]:
    """Raise StoreError where the block, operations on the model store's own files, fails with an OSError."""
    with disk_errors("write to the model store"):
        yield


@contextmanager
def new_file(path: Path, doing: str = "write to the model store") -> Iterator[BinaryIO]:
    """Make a file that is not there yet, and close it. Raises StoreError where either fails, not for the block."""
    with disk_errors(doing):
        file = path.open("xb")
    try:
        yield file
    finally:
        with disk_errors(doing):  # what is buffered is written now
            file.close()
