"""Display of a streamed reply, with its thinking set apart, and of its timings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TextIO

from vllama.cli.api_client import Record
from vllama.cli.output import go_duration, has_color
from vllama.durations import NS_PER_SECOND
from vllama.errors import VllamaError

_GREY, _BOLD, _PLAIN = "\x1b[38;5;245m", "\x1b[1m", "\x1b[0m"


@dataclass(slots=True)
class Answer:
    """The received part of one reply (incomplete after Ctrl-C). `final` is its `done` record."""

    text: str = ""
    final: Record = field(default_factory=dict)

    def show(self, records: Iterable[Record], out: TextIO, *, hide_thinking: bool = False) -> None:
        """Write the pieces of a generate or chat stream as they arrive."""
        thinking = Thinking(out)
        try:
            for record in records:
                message = record.get("message") or record
                text = message.get("content") or message.get("response") or ""
                if (thought := message.get("thinking")) and not hide_thinking:
                    thinking.write(thought)
                if text:
                    thinking.close()
                    self.text += text
                    out.write(text)
                out.flush()
                if record.get("done"):
                    self.final = record
        except VllamaError:
            out.write("\n" if self.text else "")  # the error message goes on its own line
            raise
        finally:
            thinking.close()


class Thinking:
    """Prints a model's thinking between two headings, in grey if the terminal has colours."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._color = has_color(out)
        self._last = ""

    def write(self, text: str) -> None:
        """Write a piece of thinking, after a heading if it is the first."""
        is_first, self._last = not self._last, text
        if is_first:
            self._heading("Thinking...\n")
            self._out.write(_GREY if self._color else "")
        self._out.write(text)

    def close(self) -> None:
        """Write the closing heading, if there was any thinking."""
        if not self._last:
            return
        if not self._last.endswith("\n"):
            self._out.write("\n")
        self._heading("...done thinking.\n\n")
        self._out.flush()
        self._last = ""

    def _heading(self, text: str) -> None:
        self._out.write(f"{_GREY}{_BOLD}{text}{_PLAIN}" if self._color else text)


def timings(final: Record) -> str:
    """Return the timings that `--verbose` prints from a final record (durations in ns, counts in tokens)."""
    lines = []
    for label, key in (("total", "total"), ("load", "load")):
        if ns := final.get(f"{key}_duration"):
            lines.append(_line(f"{label} duration", go_duration(ns)))
    for label, key in (("prompt eval", "prompt_eval"), ("eval", "eval")):
        count, ns, cached = (final.get(f"{key}_{what}", 0) for what in ("count", "duration", "cached_count"))
        if count:
            lines.append(_line(f"{label} count", f"{count} token(s)"))
        if cached:
            lines.append(_line(f"{label} cached", f"{cached} token(s)"))
        if ns:
            lines.append(_line(f"{label} duration", go_duration(ns)))
            lines.append(_line(f"{label} rate", f"{(count - cached) / ns * NS_PER_SECOND:.2f} tokens/s"))
    return "\n".join(lines)


def _line(label: str, value: str) -> str:
    return f"{label + ':':<21} {value}"
