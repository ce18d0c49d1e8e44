"""Why a worker ended: what its log and its exit status say, and what to do about it.

What is known stands in causes.toml; tests/scheduler/logs has logs with it, docs/troubleshooting.md lists it.
"""

from __future__ import annotations

import re
import signal
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from vllama.scheduler.log_text import clean_lines


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause of an end and its fix, a line each. `key` is that of causes.toml, "" for what it does not have."""

    key: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.cause}; {self.fix}"

    def known_or(self, other: Diagnosis) -> Diagnosis:
        """Itself if the catalogue has it, else the other."""
        return self if self.key else other


@dataclass(frozen=True, slots=True)
class Cause:
    """A known cause. Where one of its patterns is found in a log, the groups fill the braces of `text` and `fix`."""

    key: str
    patterns: tuple[re.Pattern[str], ...]
    text: str
    fix: str

    def find(self, log: str) -> Diagnosis | None:
        """What it means for this log; None where the log does not show it."""
        for pattern in self.patterns:
            if found := pattern.search(log):
                return self._fill({name: _on_one_line(value or "") for name, value in found.groupdict().items()})
        return None

    def of_signal(self, name: str) -> Diagnosis:
        """What it means that this signal ended a process."""
        return self._fill({"name": name})

    def _fill(self, said: dict[str, str]) -> Diagnosis:
        return Diagnosis(self.key, self.text.format_map(said).strip(), self.fix.format_map(said))


@cache
def catalogue() -> tuple[Cause, ...]:
    """The causes that logs show, the most telling first."""
    return tuple(
        Cause(row["key"], tuple(re.compile(p, re.MULTILINE) for p in row["patterns"]), row["text"], row["fix"])
        for row in _tables()["cause"]
    )


@cache
def signals() -> dict[str, Cause]:
    """The causes that signals show, by the signal's name."""
    return {row["name"]: Cause(row["key"], (), row["text"], row["fix"]) for row in _tables()["signal"]}


def _tables() -> dict[str, Any]:
    return tomllib.loads((files("vllama.scheduler") / "causes.toml").read_text(encoding="utf-8"))


def diagnose(log: str, status: int | None = None) -> Diagnosis:
    """The most telling cause: one that the catalogue has, or the signal, or the last error that the log names.

    `status` is the exit status of the main process, negative for a signal, None where that tells nothing.
    """
    text = cleaned(log)
    for cause in catalogue():
        if found := cause.find(text):
            return found
    if killed := _signal_of(text, status):
        return killed
    ended = "" if status is None else f" (exit status {status})"
    return Diagnosis("", _last_error(text) or f"vLLM ended without a word{ended}", "the worker's log says more")


def diagnose_error(error: OSError) -> Diagnosis:
    """The cause of an error of our own with a file."""
    text = f"{type(error).__name__}: {error}"
    return diagnose(text).known_or(Diagnosis("", text, "check the directory and who may write to it"))


def cleaned(log: str) -> str:
    """The log without colours, progress bars, what vLLM puts in front of each line, and the code of tracebacks.

    Very long lines are cut: the time that patterns take grows with the square of a line's length.
    """
    lines = (_PREFIX.sub("", line[:_LONGEST_LINE]).rstrip() for line in clean_lines(log))
    return "\n".join(line for line in lines if not line.startswith(_CODE))


_PREFIX = re.compile(
    r"^(?:\([^()]*pid=\d+\) |\[rank\d+\]: ?)*(?:(?:ERROR|CRITICAL|WARNING) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"
)
_CODE = ("    ", '  File "')
_ERROR = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b: .+", re.MULTILINE)
# These only say that something went wrong before them.
_ECHOES = ("Engine core initialization failed", "WorkerProc initialization failed", "EngineDeadError", "CancelledError")
_LONGEST = 400
_LONGEST_LINE = 2000
_CHILD_ENDED = re.compile(r"Failed core proc\(s\): \{[^}]*: -(\d+)|\(exit code: -(\d+)\)")


def _last_error(text: str) -> str:
    """The last exception that says something of its own."""
    errors = [line for line in _ERROR.findall(text) if not any(echo in line for echo in _ECHOES)]
    return _on_one_line(errors[-1]) if errors else ""


def _on_one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST]


def _signal_of(text: str, status: int | None) -> Diagnosis | None:
    """A process that a signal ended: one whose end vLLM noticed, or the main one."""
    number = -status if status is not None and status < 0 else 0
    for found in _CHILD_ENDED.finditer(text):
        number = int(found[1] or found[2])
    if not number:
        return None
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if known := signals().get(name):
        return known.of_signal(name)
    return Diagnosis("", f"a process of the worker was ended by {name}", "the worker's log says more")
