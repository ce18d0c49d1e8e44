"""Where a server says which process it is, for `vllama reload`: a file that it holds locked as long as it lives."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
from pathlib import Path

from vllama.errors import ServerError, ServerUnreachable

log = logging.getLogger(__name__)


class PidFile:
    """The file of the server at one port; it lies in the model store, which only its users can write."""

    def __init__(self, models: Path, port: int) -> None:
        self._path = models / f"server-{port}.pid"
        self._file: int | None = None

    def hold(self) -> None:
        """Write it and keep it locked. Where that cannot be, the server does without."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            log.warning("`vllama reload` will not find this server: %s", error)
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.write(file, b"%d\n" % os.getpid())
        except OSError as error:
            os.close(file)
            log.warning("`vllama reload` will not find this server: %s is in use: %s", self._path, error)
        else:
            self._file = file

    def release(self) -> None:
        """Remove it."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to the server that holds the file; return its process number.

        Raises ServerUnreachable where no server does, ServerError where it is another user's.
        """
        try:
            with self._path.open("rb") as file:
                if _is_locked(file.fileno()):
                    pid = int(file.read())
                    os.kill(pid, number)
                    return pid
        except PermissionError as error:
            raise ServerError(f"the server that {self._path} names belongs to another user: {error}") from error
        except (OSError, ValueError):
            pass  # there is none, or it has just gone
        raise ServerUnreachable(f"no server on this machine holds {self._path}")


def _is_locked(file: int) -> bool:
    """Whether somebody lives who holds it; a number alone may be that of a stranger by now."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
