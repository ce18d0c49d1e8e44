"""Cleaning of log text: no colours, and only the last state of progress bars."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def clean_lines(text: str) -> Iterator[str]:
    """Yield the lines that are not empty."""
    for line in text.split("\n"):
        clean = _NOISE.sub("", line.rstrip().rsplit("\r", 1)[-1]).rstrip()
        if clean:
            yield clean
