"""A worker's log: how far its load is, whether it goes on, and why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import stat
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from vllama.errors import LoadFailed
from vllama.scheduler.causes import Diagnosis, diagnose, diagnose_error
from vllama.scheduler.load_phases import LoadProgress, progress_of
from vllama.scheduler.log_text import clean_lines

log = logging.getLogger(__name__)

_TAIL_LINES = 15
_END_BYTES = 256 * 1024
_FULL_DISK_BYTES = 64 * 1024

OUT_OF_MEMORY = frozenset(
    {
        "gpu-memory-taken",
        "memory-taken",
        "gpu-memory-sampler",
        "gpu-memory",
        "gpu-memory-unknown",
        "memory",
        "killed",
    }
)
"""The causes that others do away with by giving up their memory. A KV cache that is too small is not among them: its
size was decided before the load."""

_WANTS_CODE = frozenset({"architecture", "model-type", "remote-code"})
"""The causes that the model's own code may do away with."""

# What argparse prints last, after the usage: the program's name and its reason, which may have several lines.
_REFUSAL = re.compile(r"^vllm[^\n]*: error: (.+)\Z", re.MULTILINE | re.DOTALL)


def open_log(path: Path) -> BinaryIO:
    """Begin a worker's log. Raises LoadFailed where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        raise LoadFailed(f"the worker's log cannot be written: {diagnose_error(error)}") from error


class WorkerLog:
    """One worker's. `without_code` is the fix where the worker fails for want of the model's own code."""

    def __init__(self, path: Path, without_code: str = "") -> None:
        self._path = path
        self._without_code = without_code
        self._size = -1
        self._since = 0.0

    def tail(self) -> str:
        """The last lines that say something, colours and progress bars removed."""
        return "\n".join(deque(clean_lines(self._end()), maxlen=_TAIL_LINES))

    def load_progress(self) -> LoadProgress:
        """How far the load is."""
        return progress_of(self._end())

    def seconds_still(self) -> float:
        """Seconds since it was first seen as long as it is now."""
        now = asyncio.get_running_loop().time()
        try:
            size = self._path.stat().st_size
        except OSError:
            size = 0
        if size != self._size:
            self._size, self._since = size, now
        return now - self._since

    def diagnose(self, status: int | None = None) -> Diagnosis:
        """Why the worker ended or fails, as far as can be known now; `status` is its exit status."""
        found = diagnose(self._end(), status)
        if not found.key and _is_full(self._path.parent):  # and so what it had to say could not be written
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            return diagnose_error(full)
        if found.key in _WANTS_CODE and self._without_code:
            return replace(found, fix=self._without_code)
        return found

    def refused_flags(self) -> str:
        """What vLLM has against its command line; "" where it does not say such a thing."""
        return refused_flags(self.tail())

    def report(self, what: str, diagnosis: Diagnosis) -> None:
        """Have the server's log tell what happened and why."""
        log.error("%s", what)
        log.error("  cause: %s", diagnosis.cause)
        log.error("  fix: %s", diagnosis.fix)
        log.error("  the worker's log: %s", self._path)

    def _end(self) -> str:
        """The last of it. A link to a device is not followed: /dev/full can be read for ever."""
        with contextlib.suppress(OSError), self._path.open("rb") as output:
            if stat.S_ISREG(os.fstat(output.fileno()).st_mode):
                output.seek(max(0, output.seek(0, os.SEEK_END) - _END_BYTES))
                return output.read(_END_BYTES).decode(errors="replace")
        return ""


def refused_flags(text: str) -> str:
    """vLLM's own words for what is wrong with its command line, out of all that it said; "" where there are none."""
    refusal = _REFUSAL.search(text)
    return refusal.group(1) if refusal else ""


def _is_full(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(directory).free < _FULL_DISK_BYTES
    return False
