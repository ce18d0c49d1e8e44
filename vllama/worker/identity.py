"""The plugin alone, in a vLLM without our gateway: enough of Ollama's other routes for clients to find the model."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vllama import OLLAMA_VERSION
from vllama.errors import InvalidName, ModelNotFound, RequestError, VllamaError
from vllama.names import ModelName
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.ollama.status import JSON, error_body, status_of

_FOREVER = timedelta(days=100 * 365)
_SHOW = known_fields("model", "name", "verbose", "system")


class Identity:
    """Describes the one model of this server, under the names that `--served-model-name` gave it."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._details: dict[str, Any] = {}
        self._capabilities: tuple[str, ...] = ()
        self._architecture = ""
        self._context_length = 0
        self._slots = 0
        self._since = datetime.now(UTC)

    def serve(self, model_config: Any, args: Namespace, capabilities: tuple[str, ...], slots: int) -> None:
        """Take the facts from vLLM's ModelConfig; the engine runs `slots` requests at once."""
        self._slots = slots
        self._capabilities = capabilities
        self._names = tuple(args.served_model_name or [args.model])
        self._architecture = str(model_config.hf_config.model_type)
        self._context_length = int(model_config.max_model_len)
        self._details = {
            "parent_model": "",
            "format": "safetensors",
            "family": self._architecture,
            "families": [self._architecture],
            "parameter_size": "",
            "quantization_level": str(model_config.quantization or model_config.dtype).removeprefix("torch.").upper(),
        }

    @property
    def full_name(self) -> str:
        """The first served name in full, for Ollama's capability errors."""
        try:
            return ModelName.parse(self._names[0]).full
        except InvalidName:
            return self._names[0]  # a path on disk

    @property
    def spellings(self) -> frozenset[str]:
        """The names that requests may use: those served, with and without `:latest`."""
        bare = {name.removesuffix(":latest") for name in self._names}
        return frozenset(self._names) | bare | {f"{name}:latest" for name in bare if ":" not in name}

    def routes(self) -> list[Route]:
        """Return the routes for the first calls of Ollama's clients; vLLM has none of these paths."""
        return [
            Route("/", _answer(lambda _: None), methods=["GET", "HEAD"]),
            Route("/api/version", _answer(lambda _: {"version": OLLAMA_VERSION}), methods=["GET", "HEAD"]),
            Route("/api/tags", _answer(lambda _: {"models": self._tags()}), methods=["GET", "HEAD"]),
            Route("/api/ps", _answer(lambda _: {"models": self._residents()}), methods=["GET", "HEAD"]),
            Route("/api/show", _answer(self._show), methods=["POST"]),
        ]

    def _tags(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "model": name,
                "modified_at": self._since.isoformat(),
                "size": 0,
                "digest": hashlib.sha256(name.encode()).hexdigest(),
                "details": self._details,
                "capabilities": self._capabilities,
            }
            for name in self._names
        ]

    def _residents(self) -> list[dict[str, Any]]:
        forever = (datetime.now(UTC) + _FOREVER).isoformat()
        return [
            {
                **item,
                "size_vram": 0,
                "expires_at": forever,
                "context_length": self._context_length,
                "slots": self._slots,  # for the gateway; Ollama's clients ignore unknown keys
            }
            for item in self._tags()
        ]

    def _show(self, body: bytes) -> dict[str, Any]:
        fields = Fields(decode(body), "ShowRequest", _SHOW)
        asked = fields.string("model") or fields.string("name")
        if not asked:
            raise RequestError("model is required")
        if asked not in self.spellings:
            raise ModelNotFound(asked)
        return {
            "details": self._details,
            "model_info": {
                "general.architecture": self._architecture,
                f"{self._architecture}.context_length": self._context_length,
            },
            "capabilities": self._capabilities,
            "modified_at": self._since.isoformat(),
        }


def _answer(produce: Callable[[bytes], Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        try:
            value = produce(await request.body())
        except VllamaError as error:
            return Response(error_body(str(error)), status_of(error), media_type=JSON)
        if value is None:
            return Response("Ollama is running", media_type="text/plain")
        return Response(orjson.dumps(value), media_type=JSON)

    return endpoint
