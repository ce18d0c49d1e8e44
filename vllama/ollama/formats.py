"""The enforced part of a client's JSON Schema, and the header and log line about the rest (contract §2.4)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllama.schemas import Rewritten

log = logging.getLogger(__name__)

RELAXED = b"x-vllama-format-relaxed"
"""The reply header that lists the JSON pointers of the keywords that are not enforced."""

Header = tuple[bytes, bytes]


class Unprepared(Exception):
    """A schema has to be prepared first, beside the event loop; then the work can be done again."""

    def __init__(self, schema: Any) -> None:
        super().__init__()
        self.schema = schema


Prepare = Callable[[Any], bool]

is_prepared: ContextVar[Prepare | None] = ContextVar("is_prepared", default=None)
"""Where it is set, `enforced` raises Unprepared for a schema of which this says no."""


def enforced(schema: Any) -> Rewritten:
    """Return a schema as the engine enforces it, and what that leaves out; logged once per schema.

    Raises SchemaError for what is no schema, what nothing satisfies, and what is too large; Unprepared.
    """
    from vllama.schemas import rewrite  # libraries for JSON Schema: most requests have no format

    prepared = is_prepared.get()
    if prepared is not None and not prepared(schema):
        raise Unprepared(schema)
    rewritten = rewrite(schema)
    if rewritten.relaxed:
        _log_once(rewritten.header())
    return rewritten


def relaxed_headers(schema: Any) -> tuple[Header, ...]:
    """Return the reply headers about a `format`: none unless it is a schema that is enforced in part only."""
    return headers_about(enforced(schema)) if isinstance(schema, dict) else ()


def headers_about(rewritten: Rewritten) -> tuple[Header, ...]:
    """Return the reply headers about what a rewritten schema leaves out."""
    told = rewritten.header()
    return ((RELAXED, told.encode()),) if told else ()


@lru_cache(maxsize=1024)
def _log_once(pointers: str) -> None:
    log.warning("a JSON Schema is enforced in part: grammars cannot enforce %s", pointers)
