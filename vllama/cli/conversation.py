"""The state of `vllama run`: the model, its settings and the messages so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllama.cli.api_client import Record
from vllama.errors import OptionTypeError, RequestError
from vllama.ollama.options import TYPES

Think = bool | str
"""The request's `think`: on, off, or a level (contract §2.5)."""

_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


@dataclass(slots=True)
class Conversation:
    """A chat with one model. `keep_alive` is in seconds; None leaves a setting to the server."""

    model: str
    system: str = ""
    format: Any = None
    keep_alive: float | None = None
    think: Think | None = None
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[Record] = field(default_factory=list)

    def load(self) -> Record:
        """Return the request body that loads the model; a model that cannot think already refuses `think` here."""
        return self._body(keep_alive=self.keep_alive, think=self.think)

    def generate(self, prompt: str) -> Record:
        """Return the request body of `/api/generate` for a single prompt."""
        return self._body(prompt=prompt, system=self.system or None, **self._choices())

    def chat(self, text: str) -> Record:
        """Return the request body of `/api/chat` that adds `text` to the conversation.

        A system message always comes first, because many templates accept it only there.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = {"role": "user", "content": text}
        return self._body(messages=[*system, *self.messages, asked], **self._choices())

    def remember(self, asked: str, answered: str) -> None:
        """Add a turn to the history."""
        self.messages += [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]

    def _choices(self) -> Record:
        return {
            "format": self.format,
            "options": self.options,
            "keep_alive": self.keep_alive,
            "think": self.think,
        }

    def _body(self, **fields: Any) -> Record:
        return {"model": self.model, **{key: value for key, value in fields.items() if value is not None}}


def infer_think(info: Record) -> Think | None:
    """Return the `think` to send if the user gave none: True for models that can think."""
    return True if "thinking" in (info.get("capabilities") or ()) else None


def parse_option(name: str, words: list[str]) -> Any:
    """Return the value of `/set parameter NAME WORDS` with the type of the option (contract §2.10).

    Raises RequestError for an unknown name, OptionTypeError for a value of the wrong type.
    """
    kind = TYPES.get(name)
    if kind is None:
        raise RequestError(f"unknown parameter '{name}'")
    if kind == "array":
        return words
    text = " ".join(words)
    try:
        if kind == "integer":
            return int(text)
        return float(text) if kind == "float32" else _BOOLEANS[text.lower()]
    except (ValueError, KeyError):
        article = "an" if kind == "integer" else "a"
        noun = {"float32": "number", "boolean": "true or false"}.get(kind, kind)
        what = noun if kind == "boolean" else f"{article} {noun}"
        raise OptionTypeError(f"{name} must be {what}, not '{text}'") from None
