"""What a worker is told of the model it serves: everything that vLLM's command line does not say.

The scheduler writes it into the worker's environment. A worker without one (the plugin alone in somebody's
vLLM) takes what vLLM knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

ENVIRONMENT_VARIABLE = "VLLAMA_PROFILE"


@dataclass(frozen=True, slots=True)
class Profile:
    """The model's part of every request.

    `full_name` is `host/namespace/model:tag`; `parameters` are Ollama PARAMETER values with their types;
    `messages` are (role, content) pairs put before the client's own. `served_names` are the only names
    that requests may use; none where a gateway has resolved the name already.
    """

    full_name: str
    capabilities: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    served_names: frozenset[str] = frozenset()

    def to_environment(self) -> dict[str, str]:
        """The variable that carries it to the worker."""
        return {
            ENVIRONMENT_VARIABLE: orjson.dumps(
                {
                    "full_name": self.full_name,
                    "capabilities": self.capabilities,
                    "parameters": dict(self.parameters),
                    "system": self.system,
                    "messages": self.messages,
                }
            ).decode()
        }

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Profile | None:
        """The profile in the environment; None where vLLM runs without our gateway."""
        text = environ.get(ENVIRONMENT_VARIABLE)
        if not text:
            return None
        values = orjson.loads(text)
        return cls(
            full_name=values["full_name"],
            capabilities=tuple(values["capabilities"]),
            parameters={
                name: tuple(value) if isinstance(value, list) else value for name, value in values["parameters"].items()
            },
            system=values["system"],
            messages=tuple((role, content) for role, content in values["messages"]),
        )
