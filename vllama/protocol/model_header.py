"""The header that tells vLLM's own routes the facts about a request's model that do not fit into the body."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from vllama.protocol.profile import AdapterPart

HEADER = b"x-vllama-model"


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """A model as one request knows it.

    `name` is the client's spelling, which the reply repeats. `chat_template` is Jinja, "" for the one that the worker
    was started with. `sampling` are vLLM's names and values for what the request's API has no field. `adapter` is None
    for weights as they are. `is_counted`: the worker adds token counts to its reply (vllama.protocol.token_counts).
    """

    name: str
    chat_template: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    adapter: AdapterPart | None = None
    is_counted: bool = False

    def to_header(self) -> tuple[bytes, bytes]:
        """Return the header's name and value."""
        said = [self.name, self.chat_template, dict(self.sampling), self.adapter, self.is_counted]
        return HEADER, b64encode(orjson.dumps(said))

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[bytes, bytes]]) -> ModelHeader | None:
        """Decode the header that `to_header` made; return None if it is missing."""
        for name, value in headers:
            if name == HEADER:
                spelled, template, sampling, adapter, is_counted = orjson.loads(b64decode(value))
                return cls(spelled, template, sampling, AdapterPart(**adapter) if adapter else None, is_counted)
        return None
