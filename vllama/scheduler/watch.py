"""Does a worker that serves still answer? Its processes are asked over their channels, and answer once the engine has.

EngineCore answers between two steps, so a reply that is merely long, or waits for its turn, is no silence. A process
that was stopped, or that waits for another for ever, never answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from vllama.frames import FrameReader, Kind, frame

_LOOKS = 10
"""How often one looks within the limit. Looks are counted, and not seconds: those go by while we are stopped, too."""


async def until_silent(channels: Sequence[Path], limit: float, computes: Callable[[], bool]) -> None:
    """Return when a process behind one of the channels has not answered for `limit` seconds.

    While `computes` says that the worker has computed since the last look, silence does not count: a step of a large
    model on a CPU may take minutes.
    """
    watches = [asyncio.create_task(_until_silent(channel, limit / _LOOKS, computes)) for channel in channels]
    try:
        await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for watch in watches:
            watch.cancel()


async def _until_silent(channel: Path, pause: float, computes: Callable[[], bool]) -> None:
    missed = 0
    question = asyncio.ensure_future(_is_answered(channel))
    try:
        while missed < _LOOKS:
            await asyncio.wait({question}, timeout=pause)
            if not question.done():
                missed = 0 if computes() else missed + 1
                continue
            missed = 0 if question.result() else missed + 1
            await asyncio.sleep(pause)
            question = asyncio.ensure_future(_is_answered(channel))
    finally:
        question.cancel()


async def _is_answered(channel: Path) -> bool:
    """Ask once, and wait for the answer; False where the channel is closed instead."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(channel))
    except OSError:
        return False
    try:
        writer.write(frame(Kind.PULSE, 1))
        frames = FrameReader()
        with contextlib.suppress(OSError):
            while data := await reader.read(1024):
                if any(kind == Kind.PULSE for kind, _, _ in frames.feed(data)):
                    return True
        return False
    finally:
        writer.close()
