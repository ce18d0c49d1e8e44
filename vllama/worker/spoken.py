"""What the gateway tells vLLM's own routes of a request's model, beyond what their bodies have room for: one header."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from vllama.worker.profile import AdapterPart

HEADER = b"x-vllama-model"


@dataclass(frozen=True, slots=True)
class SpokenModel:
    """A model as one request knows it.

    `name` is the client's spelling, which the reply repeats. `chat_template` is Jinja, "" for the one that the worker
    was started with. `sampling` are vLLM's names and values for what the request's API has no field. `adapter` is None
    for weights as they are.
    """

    name: str
    chat_template: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    adapter: AdapterPart | None = None

    def to_header(self) -> tuple[bytes, bytes]:
        """The header that carries it."""
        said = [self.name, self.chat_template, dict(self.sampling), self.adapter]
        return HEADER, b64encode(orjson.dumps(said))

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[bytes, bytes]]) -> SpokenModel | None:
        """What `to_header` made; None where there is no such header."""
        for name, value in headers:
            if name == HEADER:
                spelled, template, sampling, adapter = orjson.loads(b64decode(value))
                return cls(spelled, template, sampling, AdapterPart(**adapter) if adapter else None)
        return None
