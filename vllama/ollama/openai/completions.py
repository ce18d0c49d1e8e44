"""`POST /v1/completions` (contract §5.2): Ollama puts the prompt into the model's chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vllama.errors import Unsupported
from vllama.ollama.gojson import known_fields
from vllama.ollama.openai.call import (
    Call,
    ModelPart,
    check_types,
    drop_unlimited,
    one_where_all_are_alike,
    own_values,
    read_object,
    stop_strings,
)

_NUMBERS = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
_INTEGERS = ("max_tokens", "seed")
_BOOLEANS = ("stream", "raw")
_KNOWN = known_fields(
    *_NUMBERS, *_INTEGERS, *_BOOLEANS, "model", "prompt", "suffix", "stop", "stream_options", "echo",
    "chat_template", "chat_template_kwargs",
)  # fmt: skip

_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Completion(Call):
    """A request for a completion. `raw` leaves the prompt as it is: a word of Ollama's native API, and ours here."""

    verb: ClassVar[str] = "generate"

    prompt: str = ""
    suffix: str = ""
    raw: bool = False

    @classmethod
    def parse(cls, body: bytes) -> Completion:
        """Decode and check a body in Ollama's order. Raises RequestError."""
        fields, passed = read_object(body, "CompletionRequest", _KNOWN)
        model, prompt, suffix = fields.string("model"), fields.string("prompt"), fields.string("suffix")
        check_types(fields, _NUMBERS, _INTEGERS, _BOOLEANS)
        raw = bool(passed.pop("raw", False))
        passed["prompt"] = prompt
        passed.pop("suffix", None)
        if not raw:
            passed.pop("echo", None)  # it would show the template
        if not passed.get("stream"):
            passed.pop("stream_options", None)
        if "stop" in passed:
            passed["stop"] = stop_strings(passed["stop"])
        if not raw:  # of those, 0 has a meaning for vLLM: nothing but the echo
            drop_unlimited(passed, "max_tokens")
        return cls(model, passed, False, prompt=prompt, suffix=suffix, raw=raw)

    def check(self, part: ModelPart) -> None:
        """Raise Unsupported where the model cannot do it."""
        super(Completion, self).check(part)  # dataclass(slots=True) replaces the class that bare super() knows
        if self.suffix and "insert" not in part.capabilities:
            raise Unsupported(f"{part.full_name} does not support insert")

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """The model's sampling, and no limit of 16 tokens, which is vLLM's default here and means null, too."""
        body = {"max_tokens": _NO_LIMIT, **own_values(part.parameters, limit="max_tokens"), **self.body}
        body.pop("chat_template_kwargs", None)
        return one_where_all_are_alike(body)

    def as_generate(self) -> dict[str, Any]:
        """The request of `/api/generate` whose prompt this one's is; the reply has no room for thinking."""
        return {"model": self.model, "prompt": self.prompt, "suffix": self.suffix, "think": False}
