"""Tool calls of a reply that is still coming: each is handed out once, as soon as it is closed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vllama.ollama.replies import MadeCall
from vllama.worker.call_formats import CallEnds, CallFormat


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a reply: text, thinking, and the tool calls that became whole with it."""

    content: str = ""
    thinking: str = ""
    calls: tuple[MadeCall, ...] = ()


class ClosedCalls:
    """The calls in a text that comes in pieces."""

    def __init__(self, calls: CallFormat, parse: Callable[[str], Piece]) -> None:
        """Take the format of the calls, and what parses a text of whole calls."""
        self._format = calls
        self._ends = CallEnds(calls)
        self._parse = parse
        self._texts: list[str] = []
        self._end = 0  # of the last call that was handed out
        self._number = 0  # of those

    def feed(self, text: str) -> Piece | None:
        """Take the next text; if it closes calls, return what the text up to there says, with only these calls."""
        if not text:
            return None
        self._texts.append(text)
        found = self._ends.feed(text)
        if found is None:
            return None
        end, completion = found
        said = self._parse("".join(self._texts)[:end] + completion)
        new = said.calls[self._number :]
        if not new:
            return None
        self._end, self._number = end, self._number + len(new)
        return replace(said, calls=new)

    def rest(self, text: str, said: Piece, sent: Piece, parse_rest: Callable[[str], Piece]) -> Piece:
        """Return what the complete text says, `said`, without the calls that were handed out.

        If the text after those calls makes the whole reply unreadable, only that text is parsed, and it is added to the
        content and thinking that were `sent` already.
        """
        if len(said.calls) >= self._number:
            return replace(said, calls=said.calls[self._number :])
        rest = parse_rest(text[self._end :].lstrip().removeprefix(self._format.after))
        calls = tuple(replace(call, index=self._number + call.index) for call in rest.calls)
        return Piece(sent.content + rest.content, sent.thinking, calls)
