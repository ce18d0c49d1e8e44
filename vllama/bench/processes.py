"""A server's processes on this machine, found by the port they listen on and read from /proc."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_LISTEN = "0A"
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_FORWARDERS = frozenset({"docker-proxy", "rootlessport", "sshd", "ssh", "kubectl", "socat"})
"""They listen in the name of a server that runs elsewhere."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree has used and holds.

    `cpu` is in s, that of processes which have ended meanwhile included; `rss` is bytes of resident memory, in which
    pages that several processes share count for each.
    """

    cpu: float
    rss: int
    processes: int


class _Stat(NamedTuple):
    parent: int
    cpu: float
    began: int
    rss: int


def is_local(host: str) -> bool:
    """Whether this name or address is this machine's: only then can a socket be bound to it."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
    except OSError:
        return False
    with contextlib.suppress(OSError), socket.socket(family, kind) as trial:
        trial.bind(address)
        return True
    return False


def listener(port: int, proc: Path = _PROC) -> int | None:
    """Return the process that listens on this TCP port; of several that share the socket, their ancestor.

    None where nobody does, where the process belongs to another user or container, or only forwards.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    if not sockets:
        return None
    holders = {pid for pid in _numbers(proc) if _holds(proc / str(pid) / "fd", sockets)}
    first = [pid for pid in sorted(holders) if (stat := _stat(proc, pid)) and stat.parent not in holders]
    return first[0] if first and _name(proc, first[0]) not in _FORWARDERS else None


class ProcessTree:
    """A process and its descendants. `scan` finds them, `read` says what those found use.

    A process that has once been seen in the tree stays in it, even where its parent has ended.
    """

    def __init__(self, root: int, proc: Path = _PROC) -> None:
        self._proc = proc
        self._root = root
        self._began: dict[int, int] = {}
        self._cpu: dict[tuple[int, int], float] = {}
        self.scan()

    @property
    def pids(self) -> frozenset[int]:
        """The processes that the latest scan and read have found alive."""
        return frozenset(self._began)

    def scan(self) -> None:
        """Look for new processes; takes some ms."""
        stats = {pid: stat for pid in _numbers(self._proc) if (stat := _stat(self._proc, pid))}
        members = {self._root} | {
            pid for pid, began in self._began.items() if pid in stats and stats[pid].began == began
        }
        while grown := {pid for pid, stat in stats.items() if stat.parent in members and pid not in members}:
            members |= grown
        self._began = {pid: stats[pid].began for pid in members if pid in stats}

    def read(self) -> Usage:
        """Return what the tree uses now."""
        rss = 0
        for pid, began in list(self._began.items()):
            stat = _stat(self._proc, pid)
            if stat is None or stat.began != began:
                del self._began[pid]  # what it used stays counted
                continue
            self._cpu[pid, began] = stat.cpu
            rss += stat.rss
        return Usage(sum(self._cpu.values()), rss, len(self._began))


def machine_cpu(proc: Path = _PROC) -> float:
    """Return the CPU time that all processes of the machine have used, in s since it started."""
    user, nice, system, _, _, irq, softirq = map(int, (proc / "stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / _TICK


def command_lines(pids: Iterable[int], proc: Path = _PROC) -> list[list[str]]:
    """Return the different command lines of these processes, in the order of their numbers; what is secret as `***`."""
    lines: list[list[str]] = []
    for pid in sorted(pids):
        with contextlib.suppress(OSError):
            line = _masked((proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
            if line != [""] and line not in lines:
                lines.append(line)
    return lines


def variables(pid: int, prefixes: tuple[str, ...], proc: Path = _PROC) -> dict[str, str]:
    """Return the environment variables whose names begin so, as the process was started; what is secret as `***`."""
    with contextlib.suppress(OSError):
        text = (proc / str(pid) / "environ").read_bytes().decode(errors="replace")
        pairs = (entry.partition("=") for entry in text.split("\0"))
        return {
            name: "***" if _SECRET.search(name) else value
            for name, _, value in sorted(pairs)
            if name.startswith(prefixes)
        }
    return {}


_SECRET = re.compile(r"key|token|secret|password|passwd|credential", re.IGNORECASE)
# Flags that have such a word in their name and hide nothing.
_OPEN = re.compile(r"tokens|tokenizer|token-id", re.IGNORECASE)


def _masked(line: list[str]) -> list[str]:
    masked: list[str] = []
    hide = False
    for word in line:
        flag, equals, _ = word.partition("=")
        secret = flag.startswith("-") and bool(_SECRET.search(flag)) and not _OPEN.search(flag)
        if secret and equals:
            masked.append(f"{flag}=***")
        else:
            masked.append("***" if hide and not word.startswith("-") else word)
        hide = (secret and not equals) or (hide and not word.startswith("-"))
    return masked


def _listening(port: int, proc: Path) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                entry = line.split()
                if entry[3] == _LISTEN and int(entry[1].rpartition(":")[2], 16) == port:
                    yield entry[9]


def _numbers(proc: Path) -> Iterator[int]:
    return (int(entry) for entry in os.listdir(proc) if entry.isdigit())  # noqa: PTH208 - ten times a second


def _holds(folder: Path, sockets: set[str]) -> bool:
    try:
        return any(os.readlink(entry) in sockets for entry in folder.iterdir())  # noqa: PTH115 - no path
    except OSError:
        return False  # it has ended, or belongs to somebody else


def _name(proc: Path, pid: int) -> str:
    try:
        return (proc / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _stat(proc: Path, pid: int) -> _Stat | None:
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:  # noqa: PTH123 - ten times a second
            text = file.read()
    except OSError:
        return None
    # pid (name) state parent …; a name may hold blanks and parentheses
    entry = text[text.rindex(b")") + 2 :].split()
    if entry[0] in {b"Z", b"X"}:
        return None
    return _Stat(int(entry[1]), (int(entry[11]) + int(entry[12])) / _TICK, int(entry[19]), int(entry[21]) * _PAGE)
