"""The profile of the model that a request names: facts that its files do not give the engine.

Models with the same files and engine flags share one worker, so the gateway sends the model's profile along with each
request (vllama.protocol.frames). A worker without a gateway (the plugin alone in a user's vLLM) takes what vLLM
knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from vllama.ollama.infill import Infill


@dataclass(frozen=True, slots=True)
class AdapterPart:
    """A LoRA adapter. `number`, 1 and up, tells it from others in the engine; `digest` is its identity, 64 hex.

    `path` is its directory, in PEFT's layout.
    """

    number: int
    digest: str
    path: str


@dataclass(frozen=True, slots=True)
class Profile:
    """The model's part of every request.

    `full_name` is `host/namespace/model:tag`; `parameters` are Ollama PARAMETER values with their types;
    `messages` are (role, content) pairs put before the client's own. `chat_template` is Jinja, "" for the one that
    comes with the files. `infill` says how to ask for the text between a prompt and a suffix, where the model can.
    `adapter` is None for weights as they are. `served_names` are the only names that requests may use; none where a
    gateway has resolved the name already.
    """

    full_name: str
    capabilities: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    chat_template: str = ""
    infill: Infill | None = None
    adapter: AdapterPart | None = None
    served_names: frozenset[str] = frozenset()

    def to_json(self) -> bytes:
        """Encode the profile for the worker, without the served names."""
        return orjson.dumps(
            {
                "full_name": self.full_name,
                "capabilities": self.capabilities,
                "parameters": dict(self.parameters),
                "system": self.system,
                "messages": self.messages,
                "chat_template": self.chat_template,
                "infill": self.infill,
                "adapter": self.adapter,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> Profile:
        """Read what `to_json` wrote."""
        values = orjson.loads(data)
        return cls(
            full_name=values["full_name"],
            capabilities=tuple(values["capabilities"]),
            parameters={
                name: tuple(value) if isinstance(value, list) else value for name, value in values["parameters"].items()
            },
            system=values["system"],
            messages=tuple((role, content) for role, content in values["messages"]),
            chat_template=values["chat_template"],
            infill=Infill(**values["infill"]) if values["infill"] else None,
            adapter=AdapterPart(**values["adapter"]) if values["adapter"] else None,
        )
