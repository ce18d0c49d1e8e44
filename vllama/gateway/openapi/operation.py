"""Operations: the entries from which the document's paths are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllama.gateway.openapi.errors import Messages
from vllama.gateway.openapi.records import Record
from vllama.ollama.status import NDJSON

JSON = "application/json"
TEXT = "text/plain"
BYTES = "application/octet-stream"

Examples = Mapping[str, Any]
"""Example values by their titles."""


@dataclass(frozen=True)
class Content:
    """A body: its media type, its record (for NDJSON, that of each line), and examples.

    An example for NDJSON is the list of its records. `record` is None for text and bytes, and for JSON of any kind.
    """

    record: type[Record] | None = None
    examples: Examples = field(default_factory=dict)
    media_type: str = JSON


def stream(record: type[Record], examples: Examples) -> Content:
    """Return the content of a stream of records."""
    return Content(record, examples, NDJSON)


@dataclass(frozen=True)
class Reply:
    """A reply with one status; several contents are alternatives, none means an empty body."""

    description: str
    contents: tuple[Content, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """A parameter in the path or the query."""

    name: str
    place: str
    description: str
    example: Any
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    `errors` maps statuses to example messages, one or several. `has_head` says that HEAD is answered like GET,
    without the body. `path` is spelled as in the route table.
    """

    method: str
    path: str
    tag: str
    summary: str
    description: str = ""
    request: Content | None = None
    replies: Mapping[int, Reply] = field(default_factory=dict)
    errors: Mapping[int, Messages] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    has_head: bool = False
