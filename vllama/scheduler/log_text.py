"""A worker's log as people read it: no colours, and of a progress bar only how it looks now."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def clean_lines(text: str) -> Iterator[str]:
    """Yield the lines that say something."""
    for line in text.split("\n"):
        clean = _NOISE.sub("", line.rstrip().rsplit("\r", 1)[-1]).rstrip()
        if clean:
            yield clean
