"""What a request of `/v1` asks for, and what the model adds to it before vLLM sees it (contract §5)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from vllama.durations import quote
from vllama.errors import RequestError, Unsupported
from vllama.ollama.gojson import Fields, decode
from vllama.ollama.openai.thinking import template_arguments
from vllama.ollama.requests import Think

OWN_TEMPLATE = "chat_template"


class ModelPart(Protocol):
    """The model's part of every request; see vllama.worker.profile.Profile."""

    @property
    def full_name(self) -> str:
        """`host/namespace/model:tag`."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can do, in Ollama's terms."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """PARAMETER values with their types."""

    @property
    def system(self) -> str:
        """The system prompt, "" for none."""

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """(role, content) pairs put before the client's own."""


@dataclass(frozen=True, slots=True)
class Call(ABC):
    """A checked request. `body` is what vLLM takes but for the model's part; `think` is None where it says nothing."""

    verb: ClassVar[str] = "chat"

    model: str
    body: dict[str, Any]
    think: Think = None
    uses_tools: bool = False
    shows_images: bool = False

    def check(self, part: ModelPart) -> None:
        """Raise Unsupported where the model cannot do it, in the order and words of Ollama's native routes."""
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
        """The body that vLLM gets: the model's own values where the client left them out."""

    def beyond_the_api(self, part: ModelPart) -> dict[str, Any]:
        """Sampling values of the model for which the API has no field, under vLLM's names."""
        del part
        return {}

    def _thinking(self, part: ModelPart) -> dict[str, Any]:
        """The template's switches, unless the client has set them itself; {} for models that do not think."""
        stated = self.body.get("chat_template_kwargs") or {}
        switches = template_arguments(self.think) if "thinking" in part.capabilities else {}
        merged = {**switches, **stated}
        return {"chat_template_kwargs": merged} if merged else {}


def read_object(body: bytes, struct: str, known: Mapping[str, str]) -> tuple[Fields, dict[str, Any]]:
    """The fields to check, and all fields that are not null, those that are known in their proper spelling.

    Raises RequestError for what is no JSON object, and for a chat template: Jinja from strangers can stall a worker.
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
        raise RequestError("a request cannot bring its own chat_template: create a model with a TEMPLATE instead")
    return fields, passed


def check_types(fields: Fields, numbers: tuple[str, ...], integers: tuple[str, ...], booleans: tuple[str, ...]) -> None:
    """Raise RequestError with Go's text where one of these fields has another type."""
    for name in numbers:
        fields.number(name)
    for name in integers:
        fields.integer(name)
    for name in booleans:
        fields.boolean(name)


def drop_unlimited(body: dict[str, Any], *names: str) -> None:
    """Take limits of 0 and less away: with Ollama they mean none, and vLLM refuses them."""
    for name in names:
        if name in body and body[name] <= 0:
            del body[name]


def one_where_all_are_alike(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body without an `n` where it is greedy: vLLM refuses to say the same twice, Ollama says it once."""
    greedy = body.get("temperature", 1) < _GREEDY
    return {name: value for name, value in body.items() if not (greedy and name == "n")}


_GREEDY = 1e-5  # vLLM's `_SAMPLING_EPS`


def stop_strings(value: Any) -> list[str]:
    """`stop` as a list; Ollama ignores whatever is no text."""
    given = value if isinstance(value, list) else [value]
    return [text for text in given if isinstance(text, str) and text]


def own_values(parameters: Mapping[str, Any], *, limit: str, stop: str = "stop") -> dict[str, Any]:
    """Ollama's PARAMETER values as fields of vLLM's requests, kept within what vLLM accepts (contract §2.10).

    `limit` and `stop` are the API's names for `num_predict` and `stop`.
    """
    values: dict[str, Any] = {}
    for name, (theirs, least, most) in _BOUNDS.items():
        if name in parameters:
            values[theirs] = min(max(parameters[name], least), most)
    if values.get("repetition_penalty") == 0:
        del values["repetition_penalty"]
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
