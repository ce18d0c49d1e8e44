"""Information about processes: listening ports, process trees, resource usage and command lines."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vllama.machine.proc import PROC, TICK, process_ids, read_lines, read_numbers, stat_of, stats

_LISTEN = "0A"
_FORWARDERS = frozenset({"docker-proxy", "rootlessport", "sshd", "ssh", "kubectl", "socat"})
"""Programs that listen on behalf of a server that runs elsewhere."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Resource usage of a process tree.

    `cpu` is CPU time in s, including processes that have ended; `rss` is resident memory in bytes, in which pages
    shared by several processes count once per process.
    """

    cpu: float
    rss: int
    processes: int


def is_local(host: str) -> bool:
    """Return whether this name or address belongs to this machine, that is, whether a socket can be bound to it."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
    except OSError:
        return False
    with contextlib.suppress(OSError), socket.socket(family, kind) as trial:
        trial.bind(address)
        return True
    return False


def listener(port: int, proc: Path = PROC) -> int | None:
    """Return the process that listens on this TCP port; if several share the socket, their common ancestor.

    None if no process listens, or if it belongs to another user or container, or only forwards.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    if not sockets:
        return None
    holders = {pid for pid in process_ids(proc) if _holds(proc / str(pid) / "fd", sockets)}
    first = [pid for pid in sorted(holders) if (stat := stat_of(pid, proc)) and stat.parent not in holders]
    return first[0] if first and _FORWARDERS.isdisjoint(read_lines(proc / str(first[0]) / "comm")) else None


class ProcessTree:
    """A process and its descendants. `scan` finds them, `read` returns their resource usage.

    A process that was once found stays in the tree, even if its parent has ended.
    """

    def __init__(self, root: int, proc: Path = PROC) -> None:
        self._proc = proc
        self._root = root
        self._began: dict[int, int] = {}
        self._cpu: dict[tuple[int, int], float] = {}
        self.scan()

    @property
    def pids(self) -> frozenset[int]:
        """The processes that the last scan and read found alive."""
        return frozenset(self._began)

    def scan(self) -> None:
        """Find new processes; takes a few ms."""
        seen = dict(stats(self._proc))
        members = {self._root} | {pid for pid, began in self._began.items() if pid in seen and seen[pid].began == began}
        while grown := {pid for pid, stat in seen.items() if stat.parent in members and pid not in members}:
            members |= grown
        self._began = {pid: seen[pid].began for pid in members if pid in seen}

    def read(self) -> Usage:
        """Return the current resource usage of the tree."""
        rss = 0
        for pid, began in list(self._began.items()):
            stat = stat_of(pid, self._proc)
            if stat is None or stat.began != began:
                del self._began[pid]  # its usage still counts
                continue
            self._cpu[pid, began] = stat.cpu
            rss += stat.rss
        return Usage(sum(self._cpu.values()), rss, len(self._began))


def ram_of(processes: Collection[int], proc: Path = PROC) -> int:
    """Return the RAM of processes in bytes, with a proportional share of shared pages and without mapped files."""
    facts = [read_numbers(proc / str(process) / "smaps_rollup") for process in processes]
    return sum(fact.get("Pss_Anon", 0) + fact.get("Pss_Shmem", 0) for fact in facts) * 1024


def machine_cpu(proc: Path = PROC) -> float:
    """Return the CPU time in s that all processes have used since the machine started."""
    user, nice, system, _, _, irq, softirq = map(int, (proc / "stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / TICK


def command_lines(pids: Iterable[int], proc: Path = PROC) -> list[list[str]]:
    """Return the distinct command lines of these processes in the order of their ids, with secrets as `***`."""
    lines: list[list[str]] = []
    for pid in sorted(pids):
        with contextlib.suppress(OSError):
            line = _masked((proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
            if line != [""] and line not in lines:
                lines.append(line)
    return lines


def variables(pid: int, prefixes: tuple[str, ...], proc: Path = PROC) -> dict[str, str]:
    """Return the process's initial environment variables with these name prefixes, with secrets as `***`."""
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
# Flags whose names contain such a word but which hold no secret.
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
        for line in read_lines(proc / "net" / table)[1:]:
            entry = line.split()
            if entry[3] == _LISTEN and int(entry[1].rpartition(":")[2], 16) == port:
                yield entry[9]


def _holds(folder: Path, sockets: set[str]) -> bool:
    try:
        return any(os.readlink(entry) in sockets for entry in folder.iterdir())  # noqa: PTH115 - no path
    except OSError:
        return False  # it has ended, or belongs to another user
