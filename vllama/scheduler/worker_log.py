"""The log of a worker: load progress, activity and cause of its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
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


def open_log(path: Path, kept: int = 0) -> BinaryIO:
    """Open a new log for a worker, and keep the last `kept` ones as NAME.1.log (the newest), NAME.2.log and so on.

    Raises LoadFailed if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_place(path, kept)
        if kept and path.is_file() and not path.is_symlink():
            path.replace(_numbered(path, 1))
        path.open("wb").close()
        return path.open("ab")  # its writers go on at its end after `rotate`
    except OSError as error:
        raise LoadFailed(f"cannot write the worker's log: {diagnose_error(error)}") from error


def _make_place(path: Path, kept: int) -> None:
    """Move each earlier log to the next number, so that the first is free; those beyond `kept` are removed."""
    for number in range(kept, 1, -1):
        earlier = _numbered(path, number - 1)
        if earlier.is_file() and not earlier.is_symlink():
            earlier.replace(_numbered(path, number))
    for extra in itertools.count(kept + 1):
        try:
            _numbered(path, extra).unlink()
        except FileNotFoundError:
            return


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


class WorkerLog:
    """The log of one worker. `without_code` is the fix if the worker fails because the model's code is missing."""

    def __init__(self, path: Path, without_code: str = "") -> None:
        self._path = path
        self._without_code = without_code
        self._size = -1
        self._since = 0.0
        self._rotated = False

    def tail(self) -> str:
        """Return the last non-empty lines, without colours and progress bars."""
        return "\n".join(deque(clean_lines(self._end()), maxlen=_TAIL_LINES))

    def load_progress(self) -> LoadProgress:
        """Return the progress of the load."""
        return progress_of(self._end())

    def seconds_still(self) -> float:
        """Return the seconds since the log last grew."""
        now = asyncio.get_running_loop().time()
        try:
            size = self._path.stat().st_size
        except OSError:
            size = 0
        if size != self._size:
            self._size, self._since = size, now
        return now - self._since

    def diagnose(self, status: int | None = None) -> Diagnosis:
        """Return why the worker ended or fails, as far as known; `status` is its exit status."""
        found = diagnose(self._end(), status)
        if not found.key and _is_full(self._path.parent):  # and so what it had to say could not be written
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            return diagnose_error(full)
        if found.key in _WANTS_CODE and self._without_code:
            return replace(found, fix=self._without_code)
        return found

    def rotate(self, most: int, kept: int) -> None:
        """Move what is in a log of more than `most` bytes to NAME.1.log; at least that is kept of the earlier ones.

        The worker goes on writing to its file. A line that it writes in the moment of the cut is lost.
        """
        with contextlib.suppress(OSError), self._path.open("r+b") as output:
            state = os.fstat(output.fileno())
            if not stat.S_ISREG(state.st_mode) or state.st_size <= most:
                return
            with contextlib.suppress(OSError):  # a full disk needs the cut most
                _make_place(self._path, max(kept, 1))
                with _numbered(self._path, 1).open("wb") as earlier:
                    shutil.copyfileobj(output, earlier)
            output.truncate(0)
            self._rotated = True

    def refused_flags(self) -> str:
        """Return vLLM's error about its command line; "" if there is none."""
        return refused_flags(self.tail())

    def report(self, what: str, diagnosis: Diagnosis) -> None:
        """Write what happened and why to the server's log."""
        log.error("%s", what)
        log.error("  cause: %s", diagnosis.cause)
        log.error("  fix: %s", diagnosis.fix)
        log.error("  the worker's log: %s", self._path)

    def _end(self) -> str:
        """Return the end of the log, also if the worker has just begun a new file."""
        end = _end_of(self._path, _END_BYTES)
        if self._rotated:
            end = _end_of(_numbered(self._path, 1), _END_BYTES - len(end)) + end
        return end.decode(errors="replace")


def _end_of(path: Path, most: int) -> bytes:
    """Return the last bytes of a file. A link to a device is not followed: /dev/full can be read forever."""
    with contextlib.suppress(OSError), path.open("rb") as output:
        if stat.S_ISREG(os.fstat(output.fileno()).st_mode):
            output.seek(max(0, output.seek(0, os.SEEK_END) - most))
            return output.read(most)
    return b""


def refused_flags(text: str) -> str:
    """Return vLLM's error about its command line from its output; "" if there is none."""
    refusal = _REFUSAL.search(text)
    return refusal.group(1) if refusal else ""


def _is_full(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(directory).free < _FULL_DISK_BYTES
    return False
