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
    keep_within_bounds,
    one_where_all_are_alike,
    own_values,
    read_object,
    stop_strings,
)
from vllama.ollama.openai.ignored import leave_out_unusable
from vllama.ollama.openai.structured import enforce

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
    """A request for a completion. `raw` leaves the prompt unchanged, an extension taken from Ollama's native API.

    A raw prompt may also be several texts or token ids, which vLLM reads from the body; `prompt` is "" then.
    """

    verb: ClassVar[str] = "generate"

    prompt: str = ""
    suffix: str = ""
    raw: bool = False

    @classmethod
    def parse(cls, body: bytes) -> Completion:
        """Decode and check a body in Ollama's order. Raises RequestError."""
        fields, passed = read_object(body, "CompletionRequest", _KNOWN)
        model, suffix = fields.string("model"), fields.string("suffix")
        check_types(fields, _NUMBERS, _INTEGERS, _BOOLEANS)
        raw = bool(passed.pop("raw", False))
        prompt = _only_text(fields.raw("prompt"))
        if prompt is None and not (raw and isinstance(fields.raw("prompt"), list)):
            prompt = fields.string("prompt")
        passed["prompt"] = fields.raw("prompt") if prompt is None else prompt
        passed.pop("suffix", None)
        if not raw:
            passed.pop("echo", None)  # it would reveal the template
        if not passed.get("stream"):
            passed.pop("stream_options", None)
        if "stop" in passed:
            passed["stop"] = stop_strings(passed["stop"])
        leave_out_unusable(passed, "logprobs")
        keep_within_bounds(passed)
        if not raw:  # for vLLM, 0 means: return only the echoed prompt
            drop_unlimited(passed, "max_tokens")
        told = enforce(passed, "response_format")
        return cls(model, passed, False, reply_headers=told, prompt=prompt or "", suffix=suffix, raw=raw)

    def check(self, part: ModelPart) -> None:
        """Raise Unsupported if the model lacks a capability."""
        super(Completion, self).check(part)  # dataclass(slots=True) replaces the class that bare super() refers to
        if self.suffix and "insert" not in part.capabilities:
            raise Unsupported(f"{part.full_name} does not support insert")

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """Return the body with the model's sampling and without vLLM's default limit of 16 tokens."""
        body = {"max_tokens": _NO_LIMIT, **own_values(part.parameters, limit="max_tokens"), **self.body}
        body.pop("chat_template_kwargs", None)
        return one_where_all_are_alike(body)

    def as_generate(self) -> dict[str, Any]:
        """Return the equivalent request of `/api/generate`, without thinking, for which the reply has no field."""
        return {"model": self.model, "prompt": self.prompt, "suffix": self.suffix, "think": False}


def _only_text(prompt: Any) -> str | None:
    """Return the only text of a list, in which LangChain and others send a prompt; None for all else."""
    return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str) else None
