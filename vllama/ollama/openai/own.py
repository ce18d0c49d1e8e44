"""Routes whose fields only vLLM checks: rerank, score, classify, tokenize, speech, and decisions (contract §10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllama.durations import parse_keep_alive, quote
from vllama.errors import Unsupported
from vllama.ollama.gojson import known_fields
from vllama.ollama.openai.call import Call, ModelPart, read_object

_KNOWN = known_fields("model", "chat_template", "chat_template_kwargs")
_DECISION = known_fields("model", "chat_template", "chat_template_kwargs", "keep_alive", "state", "questions")


@dataclass(frozen=True, slots=True)
class Task:
    """The task of such a route, and the capabilities of which a model needs one; empty means any model."""

    verb: str
    capabilities: frozenset[str] = field(default_factory=frozenset)


RERANK = Task("rerank", frozenset({"rerank", "embedding"}))
CLASSIFY = Task("classify", frozenset({"classify", "rerank"}))
TOKENIZE = Task("tokenize")
TRANSCRIBE = Task("transcribe", frozenset({"completion"}))
DECIDE = Task("systemone", frozenset({"decision"}))


@dataclass(frozen=True, slots=True)
class VllmCall(Call):
    """A request whose fields only vLLM checks."""

    task: Task = TOKENIZE

    @classmethod
    def parse(cls, body: bytes, task: Task) -> VllmCall:
        """Decode a body. Raises RequestError."""
        fields, passed = read_object(body, "Request", _KNOWN)
        return cls(fields.string("model"), passed, task=task)

    def check(self, part: ModelPart) -> None:
        """Raise Unsupported if the model cannot do the task."""
        if self.task.capabilities and not self.task.capabilities & set(part.capabilities):
            raise Unsupported(f"{quote(self.model)} does not support {self.task.verb}")

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """Return the body unchanged."""
        del part
        return self.body


@dataclass(frozen=True, slots=True)
class DecisionCall(VllmCall):
    """A request of `/v1/systemone`: questions about a state, answered by probabilities instead of text.

    vLLM does not know `keep_alive`; the model's system message is its `instructions`, unless the client sent some.
    """

    @classmethod
    def parse(cls, body: bytes, task: Task = DECIDE) -> DecisionCall:
        """Decode a body. Raises RequestError."""
        fields, passed = read_object(body, "SystemOneRequest", _DECISION)
        keep_alive = parse_keep_alive(passed.pop("keep_alive", None))
        return cls(fields.string("model").strip(), passed, task=task, keep_alive=keep_alive)

    def check(self, part: ModelPart) -> None:
        """Raise Unsupported if the model, or the installed vLLM, cannot decide."""
        if not self.task.capabilities & set(part.capabilities):
            raise Unsupported(f"model {quote(self.model)} does not support {self.task.verb}")

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """Return the body for vLLM."""
        return {**({"instructions": part.system} if part.system else {}), **self.body}
