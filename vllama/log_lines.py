"""Lines of the log that clients cannot forge: what they send may hold line ends and other control characters."""

from __future__ import annotations

import logging
import re

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def escaped(text: str) -> str:
    """Return the text on one line, with control characters as Python writes them."""
    if text.isascii() and text.isprintable():
        return text  # nearly always
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class Formatter(logging.Formatter):
    """Formatter of which only the first line of a message begins at the left; the others are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of the standard library
        """Return the line of a record, without a traceback."""
        if not record.message.isprintable():
            record.message = "\n    ".join(map(escaped, record.message.split("\n")))
        return super().formatMessage(record)
