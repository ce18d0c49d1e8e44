"""`/api/embed`, its predecessor `/api/embeddings`, `/v1/embeddings`: requests, checks, replies (§1.4, §1.5, §5.4)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from vllama.durations import Nanoseconds, parse_keep_alive, quote
from vllama.errors import RequestError, Unsupported
from vllama.ollama import options
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.ollama.replies import Timings

_COMMON = ("model", "keep_alive", "options")
_EMBED = known_fields(*_COMMON, "input", "truncate", "dimensions")
_EMBEDDINGS = known_fields(*_COMMON, "prompt")
_OPENAI_EMBED = known_fields("model", "input", "dimensions", "encoding_format")

Vector = Any
"""A NumPy array of float32."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """A request of `/api/embed`: texts to turn into one vector each.

    `keep_alive` is a duration, durations.FOREVER, or None if not given; `dimensions` below 1 means all dimensions.
    """

    model: str
    inputs: tuple[str, ...]
    keep_alive: Nanoseconds | None
    options: dict[str, Any]
    truncate: bool = True
    dimensions: int = 0
    normalizes: bool = True

    @classmethod
    def parse(cls, body: bytes) -> EmbedRequest:
        """Decode and check a body. Raises RequestError."""
        fields = Fields(decode(body), "EmbedRequest", _EMBED)
        model, keep_alive, given = _common(fields)
        truncate, dimensions = fields.boolean("truncate"), fields.integer("dimensions")
        return cls(model, _inputs(fields.raw("input")), keep_alive, given, truncate is not False, dimensions)

    def reply(self, vectors: Sequence[Vector], timings: Timings | None = None) -> bytes:
        """Return the reply with these vectors; without vectors it has no timings either."""
        written = orjson.dumps(list(vectors), option=orjson.OPT_SERIALIZE_NUMPY)
        figures = timings.to_json() if timings else b""
        return b'{"model":%b,"embeddings":%b%b}' % (orjson.dumps(self.model), written, figures)


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest(EmbedRequest):
    """A request of `/api/embeddings`: one text to turn into an unnormalised vector.

    A text that is too long is truncated as in `/api/embed`; Ollama fails.
    """

    normalizes: bool = False

    @classmethod
    def parse(cls, body: bytes) -> EmbeddingsRequest:
        """Decode and check a body. Raises RequestError."""
        fields = Fields(decode(body), "EmbeddingRequest", _EMBEDDINGS)
        model, keep_alive, given = _common(fields)
        prompt = fields.string("prompt")
        return cls(model, (prompt,) if prompt else (), keep_alive, given)

    def reply(self, vectors: Sequence[Vector], timings: Timings | None = None) -> bytes:
        """Return the reply with the one vector, or none; it never has timings."""
        del timings
        vector = vectors[0] if vectors else []
        return b'{"embedding":%b}' % orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(frozen=True, slots=True)
class OpenAIEmbedRequest(EmbedRequest):
    """A request of `/v1/embeddings` (contract §5.4): any model's vectors can be shortened, as in `/api/embed`."""

    in_base64: bool = False

    @classmethod
    def parse(cls, body: bytes) -> OpenAIEmbedRequest:
        """Decode and check a body in Ollama's order. Raises RequestError."""
        if not body.strip():
            raise RequestError("EOF")
        fields = Fields(decode(body), "EmbedRequest", _OPENAI_EMBED, go="openai.EmbedRequest")
        model, dimensions, encoding = fields.string("model"), fields.integer("dimensions"), _encoding(fields)
        given = fields.raw("input")
        if given is None or given == []:
            raise RequestError("invalid input")
        inputs = ("",) if given == "" else _inputs(given)
        return cls(model, inputs, None, {}, dimensions=dimensions, in_base64=encoding == "base64")

    def reply(self, vectors: Sequence[Vector], timings: Timings | None = None) -> bytes:
        """Return OpenAI's list of these vectors."""
        shown = [self._shown(vector) for vector in vectors]
        data = [{"object": "embedding", "embedding": value, "index": index} for index, value in enumerate(shown)]
        tokens = timings.prompt_eval_count if timings else 0
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        reply = {"object": "list", "data": data, "model": self.model, "usage": usage}
        return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)

    def _shown(self, vector: Vector) -> Any:
        return b64encode(vector.astype("<f4").tobytes()).decode() if self.in_base64 else vector


def _encoding(fields: Fields) -> str:
    encoding = fields.string("encoding_format")
    if encoding.lower() not in {"", "float", "base64"}:
        supported = "Supported values: ['float', 'base64']."
        raise RequestError(f"Invalid value for 'encoding_format' = {encoding}. {supported}")
    return encoding.lower()


def check_embedding(request: EmbedRequest, capabilities: Collection[str]) -> None:
    """Raise Unsupported or OptionTypeError if the request cannot be served (contract §10)."""
    if "embedding" not in capabilities:
        raise Unsupported(f"{quote(request.model)} does not support embeddings")
    options.check(request.options)


def _common(fields: Fields) -> tuple[str, Nanoseconds | None, dict[str, Any]]:
    return fields.string("model"), parse_keep_alive(fields.raw("keep_alive")), fields.mapping("options")


def _inputs(value: Any) -> tuple[str, ...]:
    """Return the texts; a single empty string means no text, but in a list it counts as one."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise RequestError("invalid input type")
