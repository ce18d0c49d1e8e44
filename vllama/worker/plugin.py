"""The entry point of group `vllm.endpoint_plugins`: adds Ollama's routes to vLLM's API server.

Loaded only where VLLM_PLUGINS names `vllama` (`vllm/plugins/endpoint_plugins/interface.py`).
"""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from typing import Any

from starlette.routing import Route

from vllama.ollama.embedding import EmbeddingsRequest, EmbedRequest, OpenAIEmbedRequest
from vllama.worker import channel
from vllama.worker.adapters import Adapters
from vllama.worker.dialects import Chat, Generate
from vllama.worker.embedding import EmbeddingRoute
from vllama.worker.engine import Engine, api_process
from vllama.worker.generation import GenerationRoute
from vllama.worker.identity import Identity
from vllama.worker.pooling import PoolingEngine
from vllama.worker.profile import SUPERVISED, Profile
from vllama.worker.prompt import PROMPT, PromptRoute
from vllama.worker.sleeping import SleepRoutes
from vllama.worker.sleeping_engine import SleepingEngine
from vllama.worker.vllm_routes import HeedHeader, heed


class OllamaPlugin:
    """Ollama's native model routes, spoken beside the engine."""

    name = "vllama"
    required_tasks = ("generate", "embed", "classify")

    def __init__(self) -> None:
        self._adapters = Adapters()
        self._generation_routes = {
            "/api/generate": GenerationRoute(Generate(), self._adapters),
            "/api/chat": GenerationRoute(Chat(), self._adapters),
        }
        self._embedding_routes = {
            "/api/embed": EmbeddingRoute(EmbedRequest),
            "/api/embeddings": EmbeddingRoute(EmbeddingsRequest),
        }
        self._openai_embedding = EmbeddingRoute(OpenAIEmbedRequest)
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
        for path, endpoint in (self._generation_routes | self._embedding_routes).items():
            app.router.routes.append(Route(path, endpoint, methods=["POST"]))
        app.router.routes.extend(self._identity.routes())
        if os.environ.get(SUPERVISED):
            app.add_middleware(HeedHeader, adapters=self._adapters)
            app.router.routes.extend(self._sleep.routes())

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Hand the engine to the routes that its model can serve; the others say that it cannot."""
        if engine_client is None:
            return  # vLLM's render-only server has no engine
        tasks = await engine_client.get_supported_tasks()
        generates = Engine(engine_client, state) if "generate" in tasks else None
        embeds = PoolingEngine(engine_client) if generates is None and "embed" in tasks else None
        capabilities = generates.capabilities if generates else ("embedding",) if embeds else ("classify",)
        infill = generates.infill(f"{args.model} {args.served_model_name}") if generates else None
        capabilities += ("insert",) if infill else ()
        self._identity.serve(engine_client.model_config, args, capabilities)
        is_supervised = bool(os.environ.get(SUPERVISED))
        names = frozenset() if is_supervised else self._identity.spellings
        profile = Profile(self._identity.full_name, capabilities, infill=infill, served_names=names)
        self._adapters.serve(engine_client)
        for generation in self._generation_routes.values():
            generation.serve(generates, profile)
        for embedding in (*self._embedding_routes.values(), self._openai_embedding):
            embedding.serve(embeds, profile)
        if is_supervised and args.uds:
            heed(state)
            self._sleep.serve(SleepingEngine(engine_client, tasks))
            routes = {**self._generation_routes, **self._embedding_routes, **self._channel_routes}
            endpoints = {path: route.answer for path, route in routes.items()}
            socket = channel.socket_path(args.uds, *api_process(engine_client))
            # Any question would do that EngineCore answers between two steps; this one costs nothing.
            self._channel = await channel.listen(socket, endpoints, engine_client.is_sleeping)
