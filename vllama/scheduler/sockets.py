"""Removal of sockets that killed processes left in a directory."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

_BOUND = Path("/proc/net/unix")
_PATH_FIELD = 7


def remove_dead_sockets(directory: Path) -> None:
    """Remove the sockets that no process has bound any more; does nothing on systems other than Linux."""
    try:
        table = _BOUND.read_text(errors="surrogateescape")
    except OSError:
        return
    # number, references, protocol, flags, type, state, inode, path (proc(5)): only what is bound has a path
    rows = (line.split(maxsplit=_PATH_FIELD) for line in table.splitlines()[1:])
    bound = {row[_PATH_FIELD] for row in rows if len(row) > _PATH_FIELD}
    for path in directory.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_socket() and str(path) not in bound and _refuses(path):
                path.unlink()


def _refuses(path: Path) -> bool:
    """Return whether no process listens: the table may lack a row while others change."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
