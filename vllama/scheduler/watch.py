"""Detection of hung workers: their processes are asked over their channels whether the engine responds.

The API server says at once that it hears; EngineCore answers between two steps, so a reply that is merely long, or
waits for its turn, is no silence. A process that was stopped, or that waits for another for ever, never answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from vllama.protocol.frames import FrameReader, Kind, frame

_LOOKS = 10
"""Number of checks within the limit. Checks are counted, not seconds, which also pass while we are paused."""


async def until_silent(channels: Sequence[Path], limit: float, computes: Callable[[], bool]) -> None:
    """Wait until a process behind one of the channels has not answered for `limit` seconds.

    While `computes` says that the worker has computed since the last look, only the silence of an API server counts,
    not that of its engine: a step of a large model on a CPU may take minutes.
    """
    watches = [asyncio.create_task(_until_silent(channel, limit / _LOOKS, computes)) for channel in channels]
    try:
        await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for watch in watches:
            watch.cancel()


async def _until_silent(channel: Path, pause: float, computes: Callable[[], bool]) -> None:
    missed = unheard = 0
    question = _Question(channel)
    try:
        while missed < _LOOKS and unheard < _LOOKS:
            await asyncio.wait({question.answer}, timeout=pause)
            if not question.answer.done():
                missed = 0 if computes() else missed + 1
                unheard = 0 if question.is_heard else unheard + 1
                question.ask_again()
                continue
            unheard = 0
            missed = 0 if question.answer.result() else missed + 1
            await asyncio.sleep(pause)
            question = _Question(channel)
    finally:
        question.answer.cancel()


class _Question:
    """A question to the processes behind a channel. `is_heard` if the API server has heard it since the last look."""

    def __init__(self, channel: Path) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self.is_heard = False
        self.answer = asyncio.ensure_future(self._is_answered(channel))

    def ask_again(self) -> None:
        """Ask whether the API server still hears."""
        self.is_heard = False
        if self._writer is not None:
            self._writer.write(frame(Kind.HEARD, 1))  # another question to the engine would only add to its work

    async def _is_answered(self, channel: Path) -> bool:
        """Ask and wait for the engine's answer; return False if the channel closes instead."""
        try:
            reader, self._writer = await asyncio.open_unix_connection(str(channel))
        except OSError:
            return False
        try:
            self._writer.write(frame(Kind.HEARD, 1) + frame(Kind.PULSE, 1))
            frames = FrameReader()
            with contextlib.suppress(OSError):
                while data := await reader.read(1024):
                    for kind, _, _ in frames.feed(data):
                        self.is_heard = True
                        if kind == Kind.PULSE:
                            return True
            return False
        finally:
            self._writer.close()
