"""Requests of `/v1`, and what the model's settings add to them before vLLM gets them (contract §5)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from vllama.durations import Nanoseconds, quote
from vllama.errors import RequestError, Unsupported
from vllama.ollama.formats import Header
from vllama.ollama.gojson import Fields, decode
from vllama.ollama.openai.thinking import template_arguments
from vllama.ollama.requests import Think

OWN_TEMPLATE = "chat_template"


class ModelPart(Protocol):
    """The model's part of every request; see vllama.protocol.profile.Profile."""

    @property
    def full_name(self) -> str:
        """The full name: `host/namespace/model:tag`."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The model's capabilities, with Ollama's names."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Typed PARAMETER values."""

    @property
    def system(self) -> str:
        """The system message; "" if there is none."""

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """(role, content) pairs that precede the client's messages."""


@dataclass(frozen=True, slots=True)
class Call(ABC):
    """A checked request. `body` is vLLM's body without the model's part; `think` is None if not given.

    `keep_alive` is a duration, durations.FOREVER, or None if not given.
    """

    verb: ClassVar[str] = "chat"

    model: str
    body: dict[str, Any]
    think: Think = None
    uses_tools: bool = False
    shows_images: bool = False
    reply_headers: tuple[Header, ...] = ()
    keep_alive: Nanoseconds | None = None

    def check(self, part: ModelPart) -> None:
        """Raise Unsupported if the model lacks a capability, in the order and words of Ollama's native routes."""
        if self.think and "thinking" not in part.capabilities:
            raise Unsupported(f"{quote(self.model)} does not support thinking")
        if "completion" not in part.capabilities:
            raise Unsupported(f"{quote(self.model)} does not support {self.verb}")
        if self.uses_tools and "tools" not in part.capabilities:
            raise Unsupported(f"{part.full_name} does not support tools")
        if self.shows_images and "vision" not in part.capabilities:
            raise Unsupported(f"{part.full_name} does not support vision")

    @abstractmethod
    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """Return the body for vLLM, with the model's values for fields that the client left out."""

    def beyond_the_api(self, part: ModelPart) -> dict[str, Any]:
        """Return the model's sampling values for which the API has no field, under vLLM's names."""
        del part
        return {}

    def _thinking(self, part: ModelPart) -> dict[str, Any]:
        """Return the template's thinking switches unless the client set them; {} for models without thinking."""
        stated = self.body.get("chat_template_kwargs") or {}
        switches = template_arguments(self.think) if "thinking" in part.capabilities else {}
        merged = {**switches, **stated}
        return {"chat_template_kwargs": merged} if merged else {}


def read_object(body: bytes, struct: str, known: Mapping[str, str]) -> tuple[Fields, dict[str, Any]]:
    """Return the fields to check, and all fields that are not null, known ones in canonical spelling.

    Raises RequestError if the body is not a JSON object or has a chat template, which could stall a worker.
    """
    if not body.strip():
        raise RequestError("EOF")
    value = decode(body)
    fields = Fields(value, struct, known, go=f"openai.{struct}")
    passed = {known.get(name.lower(), name): item for name, item in (value or {}).items() if item is not None}
    arguments = passed.get("chat_template_kwargs", {})
    if not isinstance(arguments, dict):
        raise fields.mismatch("chat_template_kwargs", arguments, "map[string]interface {}")
    if OWN_TEMPLATE in passed or OWN_TEMPLATE in arguments:
        raise RequestError("chat_template is not supported in a request; create a model with a TEMPLATE instead")
    return fields, passed


def check_types(fields: Fields, numbers: tuple[str, ...], integers: tuple[str, ...], booleans: tuple[str, ...]) -> None:
    """Raise RequestError with Go's message if one of these fields has another type."""
    for name in numbers:
        fields.number(name)
    for name in integers:
        fields.integer(name)
    for name in booleans:
        fields.boolean(name)


def drop_unlimited(body: dict[str, Any], *names: str) -> None:
    """Remove limits of 0 and less: in Ollama they mean no limit, and vLLM refuses them."""
    for name in names:
        if name in body and body[name] <= 0:
            del body[name]


def keep_within_bounds(body: dict[str, Any]) -> None:
    """Move sampling values that vLLM would refuse to the nearest value that it accepts, as for a model's own."""
    for name, least, most in _BOUNDS.values():
        value = body.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            body[name] = min(max(value, least), most)
    if body.get("repetition_penalty") == 0:
        del body["repetition_penalty"]


def one_where_all_are_alike(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body without `n` if sampling is greedy: vLLM refuses n > 1 then, Ollama returns one choice.

    `n` stays with vLLM's `use_beam_search`, where it is the number of beams, and temperature 0 is usual.
    """
    greedy = body.get("temperature", 1) < _GREEDY and not body.get("use_beam_search")
    return {name: value for name, value in body.items() if not (greedy and name == "n")}


_GREEDY = 1e-5  # vLLM's `_SAMPLING_EPS`


def stop_strings(value: Any) -> list[str]:
    """Return `stop` as a list; like Ollama, ignore items that are not strings."""
    given = value if isinstance(value, list) else [value]
    return [text for text in given if isinstance(text, str) and text]


def own_values(parameters: Mapping[str, Any], *, limit: str, stop: str = "stop") -> dict[str, Any]:
    """Return Ollama's PARAMETER values as vLLM request fields, within vLLM's limits (contract §2.10).

    `limit` and `stop` are the API's names for `num_predict` and `stop`.
    """
    values = {theirs: parameters[name] for name, (theirs, _, _) in _BOUNDS.items() if name in parameters}
    keep_within_bounds(values)
    if parameters.get("repeat_last_n") == 0:
        values |= _NO_PENALTIES
    if parameters.get("seed", -1) >= 0:
        values["seed"] = parameters["seed"]
    if parameters.get("num_predict", -1) > 0:
        values[limit] = parameters["num_predict"]
    if parameters.get("stop"):
        values[stop] = list(parameters["stop"])
    return values


_BOUNDS: Mapping[str, tuple[str, float, float]] = {
    "temperature": ("temperature", 0.0, 2.0),
    "top_p": ("top_p", 1e-6, 1.0),
    "top_k": ("top_k", 0, 2**31 - 1),
    "min_p": ("min_p", 0.0, 1.0),
    "repeat_penalty": ("repetition_penalty", 0.0, float("inf")),
    "presence_penalty": ("presence_penalty", -2.0, 2.0),
    "frequency_penalty": ("frequency_penalty", -2.0, 2.0),
}
_NO_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
