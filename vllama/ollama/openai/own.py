"""Routes that only vLLM has, under Ollama's names: rerank, score, classify, tokenize, speech (contract §10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllama.durations import quote
from vllama.errors import Unsupported
from vllama.ollama.gojson import known_fields
from vllama.ollama.openai.call import Call, ModelPart, read_object

_KNOWN = known_fields("model", "chat_template", "chat_template_kwargs")


@dataclass(frozen=True, slots=True)
class Task:
    """What such a route does, in a word, and the capabilities of which one is enough; none means any model."""

    verb: str
    capabilities: frozenset[str] = field(default_factory=frozenset)


RERANK = Task("rerank", frozenset({"rerank", "embedding"}))
CLASSIFY = Task("classify", frozenset({"classify", "rerank"}))
TOKENIZE = Task("tokenize")
TRANSCRIBE = Task("transcribe", frozenset({"completion"}))


@dataclass(frozen=True, slots=True)
class VllmCall(Call):
    """A request whose fields are vLLM's own business."""

    task: Task = TOKENIZE

    @classmethod
    def parse(cls, body: bytes, task: Task) -> VllmCall:
        """Decode a body. Raises RequestError."""
        fields, passed = read_object(body, "Request", _KNOWN)
        return cls(fields.string("model"), passed, task=task)

    def check(self, part: ModelPart) -> None:
        """Raise Unsupported where the model is of another kind."""
        if self.task.capabilities and not self.task.capabilities & set(part.capabilities):
            raise Unsupported(f"{quote(self.model)} does not support {self.task.verb}")

    def for_vllm(self, part: ModelPart) -> dict[str, Any]:
        """The body as it came."""
        del part
        return self.body
