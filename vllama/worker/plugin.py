"""The entry point of group `vllm.endpoint_plugins`: adds Ollama's routes to vLLM's API server.

Loaded only where VLLM_PLUGINS names `vllama` (`vllm/plugins/endpoint_plugins/interface.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import uvicorn.config
from starlette.routing import Route

from vllama import schema_size
from vllama.durations import to_seconds
from vllama.ollama.embedding import EmbeddingsRequest, EmbedRequest, OpenAIEmbedRequest
from vllama.protocol.environment import SUPERVISED
from vllama.protocol.paths import PROMPT
from vllama.protocol.profile import Profile
from vllama.protocol.sockets import channel_socket
from vllama.settings import Settings
from vllama.worker import channel_server, chat_templates
from vllama.worker.adapters import Adapters
from vllama.worker.counting import count_requests
from vllama.worker.dialects import Chat, Generate
from vllama.worker.embedding import EmbeddingRoute
from vllama.worker.engine import Engine, api_process, slots
from vllama.worker.generation import GenerationRoute
from vllama.worker.grammar_trials import try_grammars_first
from vllama.worker.identity import Identity
from vllama.worker.long_prompts import tokenize_long_ones_apart
from vllama.worker.pooling import PoolingEngine
from vllama.worker.prompt import PromptRoute
from vllama.worker.sleeping import SleepRoutes
from vllama.worker.sleeping_engine import SleepingEngine
from vllama.worker.vllm_routes import HeedHeader, heed


class OllamaPlugin:
    """Ollama's native model routes, spoken beside the engine."""

    name = "vllama"
    required_tasks = ("generate", "embed", "classify")

    def __init__(self) -> None:
        self._settings = Settings.from_environment(os.environ)
        schema_size.set_most_properties(self._settings.max_schema_properties)
        most = self._settings.max_body_size
        self._adapters = Adapters()
        self._generation_routes = {
            "/api/generate": GenerationRoute(Generate(), self._adapters, most),
            "/api/chat": GenerationRoute(Chat(), self._adapters, most),
        }
        self._embedding_routes = {
            "/api/embed": EmbeddingRoute(EmbedRequest, most),
            "/api/embeddings": EmbeddingRoute(EmbeddingsRequest, most),
        }
        self._openai_embedding = EmbeddingRoute(OpenAIEmbedRequest, most)
        # Of these two only a gateway knows: over HTTP, vLLM's own /v1 stays as it is.
        self._channel_routes: dict[str, EmbeddingRoute | PromptRoute] = {
            "/v1/embeddings": self._openai_embedding,
            PROMPT: PromptRoute(self._generation_routes["/api/generate"]),
        }
        self._identity = Identity()
        self._sleep = SleepRoutes()
        self._channel: asyncio.AbstractServer | None = None  # held, because it closes when nobody refers to it

    def attach_router(self, app: Any) -> None:
        """Register the routes as bare ASGI endpoints: FastAPI's request models would insist on a Content-Type."""
        # vLLM lets uvicorn choose, which it does after this.
        uvicorn.config.HTTP_PROTOCOLS["auto"] = "vllama.http_protocol:HttpProtocol"
        for path, endpoint in (self._generation_routes | self._embedding_routes).items():
            app.router.routes.append(Route(path, endpoint, methods=["POST"]))
        app.router.routes.extend(self._identity.routes())
        if os.environ.get(SUPERVISED):
            app.add_middleware(HeedHeader, adapters=self._adapters)
            app.router.routes.extend(self._sleep.routes())

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Give the engine to the routes that its model can serve; the others refuse requests."""
        if engine_client is None:
            return  # vLLM's render-only server has no engine
        _log_as_vllm_does()
        tasks = await engine_client.get_supported_tasks()
        tokenize_long_ones_apart(engine_client.renderer)
        trials = None
        if "generate" in tasks:
            trials = try_grammars_first(engine_client, to_seconds(self._settings.grammar_timeout))
        generates = Engine(engine_client, state, trials) if "generate" in tasks else None
        embeds = PoolingEngine(engine_client) if generates is None and "embed" in tasks else None
        capabilities = generates.capabilities if generates else ("embedding",) if embeds else ("classify",)
        infill = generates.infill(f"{args.model} {args.served_model_name}") if generates else None
        capabilities += ("insert",) if infill else ()
        self._identity.serve(engine_client.model_config, args, capabilities, slots(engine_client))
        is_supervised = bool(os.environ.get(SUPERVISED))
        names = frozenset() if is_supervised else self._identity.spellings
        profile = Profile(self._identity.full_name, capabilities, infill=infill, served_names=names)
        self._adapters.serve(engine_client)
        if generates:
            chat_templates.repair_for(engine_client.renderer.get_tokenizer(), self._identity.full_name)
        for generation in self._generation_routes.values():
            generation.serve(generates, profile)
        for embedding in (*self._embedding_routes.values(), self._openai_embedding):
            embedding.serve(embeds, profile)
        if is_supervised and args.uds:
            heed(state)
            count_requests(engine_client)
            self._sleep.serve(SleepingEngine(engine_client))
            routes = {**self._generation_routes, **self._embedding_routes, **self._channel_routes}
            endpoints = {path: route.answer for path, route in routes.items()}
            socket = channel_socket(Path(args.uds), *api_process(engine_client))
            # Any question would do that EngineCore answers between two steps; this one costs nothing.
            self._channel = await channel_server.listen(socket, endpoints, engine_client.is_sleeping)


def _log_as_vllm_does() -> None:
    """Let our warnings reach the worker's log, in vLLM's format, whatever level libraries give the root logger."""
    ours, vllms = logging.getLogger("vllama"), logging.getLogger("vllm")
    if not ours.handlers:
        ours.handlers = list(vllms.handlers)
        ours.setLevel(vllms.getEffectiveLevel())
