"""Signal handling of a running server: stop it in steps, or reload its settings."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import uvicorn

from vllama.durations import FOREVER, to_seconds
from vllama.errors import VllamaError
from vllama.settings import AFTER_A_RESTART, SETTINGS, Setting, Settings

log = logging.getLogger("vllama")

Reread = Callable[[], Settings]
"""Function that reads flags, environment and file again. Raises VllamaError if the file is invalid."""


class Adopts(Protocol):
    """A part of the server that uses settings."""

    def adopt(self, settings: Settings) -> None:
        """Use these settings from now on."""


class Signals:
    """Handler of SIGTERM and SIGINT: refuse new requests, let replies finish, end them at the limit or second signal.

    SIGHUP reads the settings again without ending streams; if the terminal was closed, it acts like SIGTERM.
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
        """Create the handler; `refuse` fails waiting requests, `end_replies` ends replies with an error."""
        self._server = server
        self._settings = settings
        self._reread = reread
        self._refuse = refuse
        self._end_replies = end_replies
        self._parts = parts
        self._has_terminal = _has_terminal()
        self._survives_its_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # started with nohup
        self.is_hurried = False
        """Whether the second signal came, so that nothing is waited for."""

    def install(self) -> None:
        """Handle the signals from now on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)

    def stop(self) -> None:
        """Stop the server: gracefully on the first call, at once on the second."""
        if self._server.should_exit:
            self._server.force_exit = self.is_hurried = True
            self._end_replies()
            return
        self._server.should_exit = True
        self._refuse()
        limit = self._settings.drain_timeout
        patience = "may take as long as they need" if limit == FOREVER else f"have {to_seconds(limit):g} s to finish"
        log.info("stopping: running requests %s; signal again to stop at once", patience)
        if limit != FOREVER:
            asyncio.get_running_loop().call_later(to_seconds(limit), self._end_replies)

    def hang_up(self) -> None:
        """Handle SIGHUP: the terminal was closed, or a reload was requested."""
        if not self._has_terminal or _has_terminal():
            self.reload()
        elif not self._survives_its_terminal and not self._server.should_exit:
            self.stop()

    def reload(self) -> None:
        """Read the settings again and apply those that can change at runtime."""
        try:
            new = self._reread()
        except VllamaError as error:
            log.error("kept the old settings: %s", error)  # noqa: TRY400 - for the user, not for us
            return
        kept: dict[str, Any] = {}
        for row in SETTINGS:
            before, now = getattr(self._settings, row.name), getattr(new, row.name)
            if before != now:
                told = _told(row, now), _told(row, before)
                log.info("%s is now %s (was %s); takes effect %s", row.name, *told, row.takes_effect)
                if row.takes_effect == AFTER_A_RESTART:
                    kept[row.name] = before
        self._settings = settings = replace(new, **kept)
        for part in self._parts:
            part.adopt(settings)
        logging.getLogger().setLevel(logging.DEBUG if settings.debug else logging.INFO)
        log.info("read the settings again")


def _told(row: Setting, value: Any) -> Any:
    """Return the value for the log."""
    if not row.is_duration:
        return value
    if value is None:
        return "no limit"
    return "for ever" if value == FOREVER else f"{to_seconds(value):g} s"


def _has_terminal() -> bool:
    """Return whether this process has a terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
