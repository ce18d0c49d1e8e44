"""The pid file of a server, for `vllama reload`, which the server keeps locked while it runs."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
from pathlib import Path

from vllama.errors import ServerError, ServerUnreachable

log = logging.getLogger(__name__)


class PidFile:
    """The pid file of the server at one port, in the model store, which only its users can write."""

    def __init__(self, models: Path, port: int) -> None:
        self._path = models / f"server-{port}.pid"
        self._file: int | None = None

    def hold(self) -> None:
        """Write and lock the file; on failure log a warning."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            log.warning("`vllama reload` will not find this server: %s", error)
            return
        try:
            os.fchmod(file, 0o600)  # who can open it can lock it, and an older server's was for all to read
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.write(file, b"%d\n" % os.getpid())
        except OSError as error:
            os.close(file)
            log.warning("`vllama reload` will not find this server: cannot lock %s: %s", self._path, error)
        else:
            self._file = file

    def release(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to the server that holds the file; return its process id.

        Raises ServerUnreachable if no server does, ServerError if it belongs to another user.
        """
        try:
            with self._path.open("rb") as file:
                if _is_locked(file.fileno()):
                    pid = int(file.read())
                    os.kill(pid, number)
                    return pid
        except PermissionError as error:
            raise ServerError(
                f"cannot signal the server of {self._path}, which belongs to another user: {error}"
            ) from error
        except (OSError, ValueError):
            pass  # there is none, or it has just ended
        raise ServerUnreachable(f"no running server found on this machine ({self._path} is not in use)")


def _is_locked(file: int) -> bool:
    """Return whether a running process holds it; the id alone may belong to another process."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
