"""Reading of files that others wrote: regular ones only, and no more than is expected."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import orjson

LARGEST_JSON = 256 << 20
"""Maximum bytes of a model's settings, template or tokenizer; the largest tokenizers have 40 MB."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError if it is a pipe or a device, of which a read might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, most: int) -> bytes:
    """Return the contents of a regular file. Raises OSError if it has more than `most` bytes, or grows meanwhile."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(f"{path} is larger than {most >> 20} MiB")
        data = file.read(size + 1)  # Python takes memory for as many bytes as it is asked to read
    if len(data) > size:
        raise OSError(f"{path} has grown while it was read")
    return data


def read_json(path: Path) -> Any:
    """Return the JSON value in a regular file. Raises OSError if it cannot be read, ValueError if it is not JSON.

    The parser refuses values nested 1024 deep, for which Python's own has no error of its own.
    """
    return orjson.loads(read_bounded(path, LARGEST_JSON))
