"""What signals do to a running server: end it in steps, or have it read its settings again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import uvicorn

from vllama.durations import FOREVER, NS_PER_SECOND
from vllama.errors import VllamaError
from vllama.settings import AFTER_A_RESTART, SETTINGS, Setting, Settings

log = logging.getLogger("vllama")

Reread = Callable[[], Settings]
"""Reads the settings anew: flags, environment and file. Raises VllamaError where the file is wrong."""


class Adopts(Protocol):
    """A part of the server that goes by settings."""

    def adopt(self, settings: Settings) -> None:
        """Go by these from now on."""


class Signals:
    """SIGTERM and SIGINT: accept nothing more and let replies finish; at the limit, or at the second, end them.

    SIGHUP: read the settings again, and drop no stream for that. Where it says that the terminal has gone: as SIGTERM.
    """

    def __init__(
        self,
        server: uvicorn.Server,
        settings: Settings,
        reread: Reread,
        *,
        refuse: Callable[[], None],
        end_replies: Callable[[], None],
        parts: tuple[Adopts, ...],
    ) -> None:
        """Take the parts: `refuse` lets nobody wait any more, `end_replies` ends replies with an error."""
        self._server = server
        self._settings = settings
        self._reread = reread
        self._refuse = refuse
        self._end_replies = end_replies
        self._parts = parts
        self._has_terminal = _has_terminal()
        self._survives_its_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # started with nohup
        self.is_hurried = False
        """Whether the second signal came: nothing is worth waiting for then."""

    def install(self) -> None:
        """Handle the signals from now on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)

    def stop(self) -> None:
        """End the server: in peace the first time, at once the second."""
        if self._server.should_exit:
            self._server.force_exit = self.is_hurried = True
            self._end_replies()
            return
        self._server.should_exit = True
        self._refuse()
        limit = self._settings.drain_timeout
        patience = "take as long as they need" if limit == FOREVER else f"have {limit / NS_PER_SECOND:g} s to finish"
        log.info("stopping: answers under way %s; once more to stop at once", patience)
        if limit != FOREVER:
            asyncio.get_running_loop().call_later(limit / NS_PER_SECOND, self._end_replies)

    def hang_up(self) -> None:
        """SIGHUP: the terminal has gone, or somebody wants the settings to be read again."""
        if not self._has_terminal or _has_terminal():
            self.reload()
        elif not self._survives_its_terminal and not self._server.should_exit:
            self.stop()

    def reload(self) -> None:
        """Read the settings again and go by them, as far as that can be done now."""
        try:
            new = self._reread()
        except VllamaError as error:
            log.error("the settings stay as they are: %s", error)  # noqa: TRY400 - for the user, not for us
            return
        kept: dict[str, Any] = {}
        for row in SETTINGS:
            before, now = getattr(self._settings, row.name), getattr(new, row.name)
            if before != now:
                told = _told(row, now), _told(row, before)
                log.info("%s is %s now, was %s; it takes effect %s", row.name, *told, row.takes_effect)
                if row.takes_effect == AFTER_A_RESTART:
                    kept[row.name] = before
        self._settings = settings = replace(new, **kept)
        for part in self._parts:
            part.adopt(settings)
        logging.getLogger().setLevel(logging.DEBUG if settings.debug else logging.INFO)
        log.info("the settings were read again")


def _told(row: Setting, value: Any) -> Any:
    """The value as one would say it; durations are ns where the default is an `int`, and no count is as large."""
    if isinstance(row.default, int) and row.default >= NS_PER_SECOND:
        return "for ever" if value == FOREVER else f"{value / NS_PER_SECOND:g} s"
    return value


def _has_terminal() -> bool:
    """Whether this process has a terminal that could go."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
