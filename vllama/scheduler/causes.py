"""Diagnosis of ended workers from log and exit status, with advice.

Known causes are in causes.toml; tests/scheduler/logs has their logs, docs/troubleshooting.md lists them.
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
    """A cause and its fix, one line each. `key` is the key in causes.toml, "" for unknown causes."""

    key: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.cause}; {self.fix}"

    def known_or(self, other: Diagnosis) -> Diagnosis:
        """Return this diagnosis if the catalogue has its cause, else the other."""
        return self if self.key else other


@dataclass(frozen=True, slots=True)
class Cause:
    """A known cause. If one of its patterns matches a log, the groups fill the braces of `text` and `fix`."""

    key: str
    patterns: tuple[re.Pattern[str], ...]
    text: str
    fix: str

    def find(self, log: str) -> Diagnosis | None:
        """Return the diagnosis if a pattern matches the log, else None."""
        for pattern in self.patterns:
            if found := pattern.search(log):
                return self._fill({name: _on_one_line(value or "") for name, value in found.groupdict().items()})
        return None

    def of_signal(self, name: str) -> Diagnosis:
        """Return the diagnosis for a process that this signal killed."""
        return self._fill({"name": name})

    def _fill(self, said: dict[str, str]) -> Diagnosis:
        return Diagnosis(self.key, self.text.format_map(said).strip(), self.fix.format_map(said))


@cache
def catalogue() -> tuple[Cause, ...]:
    """Return the causes that logs show, most specific first."""
    return tuple(
        Cause(row["key"], tuple(re.compile(p, re.MULTILINE) for p in row["patterns"]), row["text"], row["fix"])
        for row in _tables()["cause"]
    )


@cache
def signals() -> dict[str, Cause]:
    """Return the causes that signals show, by signal name."""
    return {row["name"]: Cause(row["key"], (), row["text"], row["fix"]) for row in _tables()["signal"]}


def _tables() -> dict[str, Any]:
    return tomllib.loads((files("vllama.scheduler") / "causes.toml").read_text(encoding="utf-8"))


def diagnose(log: str, status: int | None = None) -> Diagnosis:
    """Return the most specific cause: from the catalogue, else the signal, else the last error in the log.

    `status` is the exit status of the main process, negative for a signal, None if it is not meaningful.
    """
    text = cleaned(log)
    for cause in catalogue():
        if found := cause.find(text):
            return found
    if killed := _signal_of(text, status):
        return killed
    ended = "" if status is None else f" (exit status {status})"
    return Diagnosis("", _last_error(text) or f"vLLM exited without an error message{ended}", "see the worker's log")


def diagnose_error(error: OSError) -> Diagnosis:
    """Return the diagnosis of our own error with a file."""
    text = f"{type(error).__name__}: {error}"
    return diagnose(text).known_or(Diagnosis("", text, "check that the directory exists and is writable"))


def cleaned(log: str) -> str:
    """Return the log without colours, progress bars, vLLM's line prefixes and the code of tracebacks.

    Very long lines are truncated: the matching time grows with the square of a line's length.
    """
    lines = (_PREFIX.sub("", line[:_LONGEST_LINE]).rstrip() for line in clean_lines(log))
    return "\n".join(line for line in lines if not line.startswith(_CODE))


_PREFIX = re.compile(
    r"^(?:\([^()]*pid=\d+\) |\[rank\d+\]: ?)*(?:(?:ERROR|CRITICAL|WARNING) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"
)
_CODE = ("    ", '  File "')
_ERROR = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b: .+", re.MULTILINE)
# These only report that something failed before them.
_ECHOES = ("Engine core initialization failed", "WorkerProc initialization failed", "EngineDeadError", "CancelledError")
_LONGEST = 400
_LONGEST_LINE = 2000
_CHILD_ENDED = re.compile(r"Failed core proc\(s\): \{[^}]*: -(\d+)|\(exit code: -(\d+)\)")


def _last_error(text: str) -> str:
    """Return the last exception that is not just a consequence of another one."""
    errors = [line for line in _ERROR.findall(text) if not any(echo in line for echo in _ECHOES)]
    return _on_one_line(errors[-1]) if errors else ""


def _on_one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST]


def _signal_of(text: str, status: int | None) -> Diagnosis | None:
    """Return the diagnosis of a process killed by a signal: one that vLLM reports, or the main one."""
    number = -status if status is not None and status < 0 else 0
    for found in _CHILD_ENDED.finditer(text):
        number = int(found[1] or found[2])
    if not number:
        return None
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if known := signals().get(name):
        return known.of_signal(name)
    return Diagnosis("", f"a process of the worker was killed by {name}", "see the worker's log")
