"""The maximum size of JSON Schemas, set once for each process; needs no library for JSON Schema."""

from __future__ import annotations

_most_properties = 2_000


def most_properties() -> int:
    """Return the maximum number of properties; an object may have half as many optional ones, an enum twice as many."""
    return _most_properties


def set_most_properties(number: int) -> None:
    """Use this maximum from now on."""
    global _most_properties  # noqa: PLW0603 - schemas are rewritten where no settings are at hand
    _most_properties = number
