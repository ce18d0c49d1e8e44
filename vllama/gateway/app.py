"""The FastAPI application: its routes, its middleware and its OpenAPI document."""

from __future__ import annotations

import resource
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from vllama import OLLAMA_VERSION, __version__, schema_size
from vllama.durations import to_seconds
from vllama.gateway import cloud, documentation
from vllama.gateway.access import Access
from vllama.gateway.admission import Admission
from vllama.gateway.bodies import Bodies
from vllama.gateway.choices import Choices
from vllama.gateway.create import Create
from vllama.gateway.dispatcher import Dispatcher
from vllama.gateway.drain import Drain
from vllama.gateway.inference import Inference
from vllama.gateway.library import Library, Puller
from vllama.gateway.metering import Metering
from vllama.gateway.middleware import OllamaMiddleware
from vllama.gateway.models import Models
from vllama.gateway.openai import OpenAI
from vllama.gateway.replies import send_bytes, send_json
from vllama.gateway.routing import Request, Routes
from vllama.gateway.schema_preparation import SchemaPreparation
from vllama.gateway.security import Guard
from vllama.gateway.transfers import Transfers
from vllama.http_limits import Connections, HttpLimits
from vllama.machine.threads import Threads
from vllama.ollama import template_limits
from vllama.scheduler.scheduler import Scheduler
from vllama.scheduler.serving import Serving
from vllama.settings import Settings
from vllama.store.gguf import limits as converter_limits
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

_STORE_THREADS = 4
"""Threads for short work on the store: the removal of a model, a look for an upload."""


class Gateway(FastAPI):
    """The FastAPI application over a store and a scheduler."""

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        scheduler: Scheduler,
        serving: Serving | None = None,
        *,
        puller: Puller = pull,
    ) -> None:
        """Take the parts; `serving` holds the engine flags of all models (none by default), `puller` fetches models.

        Raises KeysError if the key file is invalid.
        """
        # FastAPI's own documentation page loads scripts from the internet; ours is in documentation.py.
        super().__init__(title="vllama", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
        serving = serving or Serving()
        self._guard = Guard(settings)
        self._access = Access(settings)
        self._metering = Metering(settings)
        self._drain = Drain()
        self._bodies = Bodies(settings)
        self._choices = Choices(settings.max_choices)
        self._schemas = SchemaPreparation(settings.schema_timeout)
        self._limits = _http_limits(settings)
        self._admission = Admission(settings.key_slots)
        self._workers = Dispatcher(store, scheduler, self._admission)
        self._transfers = Transfers(settings.max_transfers)
        _set_limits(settings)
        routes = Routes()
        # The router tries routes in this order, so inference comes first.
        metered = routes.within(self._metering.metered)
        _add_inference(metered, Inference(self._workers, serving, self._schemas))
        OpenAI(self._workers, serving, self._choices, self._schemas).add_routes(metered)
        _add_models(routes, Models(store, scheduler, serving))
        threads = Threads("store", _STORE_THREADS)
        _add_store(
            routes.within(self._access.managed),
            Library(store, self._transfers, threads, puller),
            Create(store, serving.check_adapter, self._transfers, threads, puller),
        )
        _add_cloud(routes)
        documentation.add_routes(routes, self.openapi)
        self.router.redirect_slashes = False  # Starlette redirects every method with 307
        self.router.routes.extend(routes.all())
        self.add_middleware(
            OllamaMiddleware,
            routes=routes,
            guard=lambda: self._guard,
            access=self._access,
            drain=self._drain,
            bodies=self._bodies,
        )
        self.connections = Connections(lambda: self._limits)

    def build_middleware_stack(self) -> ASGIApp:
        """Wrap the router in the added middleware only.

        FastAPI's default middleware wraps `send`, which costs CPU for each chunk of a stream, and changes error bodies.
        """
        app: ASGIApp = self.router
        for middleware, args, kwargs in reversed(self.user_middleware):
            app = middleware(app, *args, **kwargs)
        return app

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document. The first call imports the schemas and builds it."""
        if self.openapi_schema is None:
            from vllama.gateway.openapi.document import document

            self.openapi_schema = document()
        return self.openapi_schema

    def end_replies(self) -> None:
        """End all running replies with an error in their own formats, because the server is stopping."""
        self._workers.end_replies()
        self._drain.end()

    def adopt(self, settings: Settings) -> None:
        """Use these settings for requests from now on."""
        self._guard = Guard(settings)
        self._access.adopt(settings)
        self._admission.slots = settings.key_slots
        self._transfers.adopt(settings.max_transfers)
        _set_limits(settings)
        self._bodies.adopt(settings)
        self._choices.most = settings.max_choices
        self._schemas.limit = settings.schema_timeout
        self._limits = _http_limits(settings)

    def close(self) -> None:
        """Close the connections to the workers, the record of usage, and the audit log."""
        self._workers.close()
        self._metering.close()
        self._access.close()


def _http_limits(settings: Settings) -> HttpLimits:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4  # the rest is for workers, files and pulls
    return HttpLimits(
        head_size=settings.max_header_size,
        headers=settings.max_headers,
        pipelined=settings.max_pipelined,
        connections=min(settings.max_connections or most, most),
        head_seconds=to_seconds(settings.header_timeout),
        body_seconds=to_seconds(settings.body_timeout),
    )


def _set_limits(settings: Settings) -> None:
    template_limits.set_limits(template_limits.limits_of(settings))
    converter_limits.set_limits(settings)
    schema_size.set_most_properties(settings.max_schema_properties)


def _add_inference(routes: Routes, inference: Inference) -> None:
    routes.add("POST", "/api/chat", inference.chat)
    routes.add("POST", "/api/generate", inference.generate)
    routes.add("POST", "/api/embed", inference.embed)
    routes.add("POST", "/api/embeddings", inference.embeddings)


def _add_models(routes: Routes, models: Models) -> None:
    routes.add("HEAD|GET", "/", _root)
    routes.add("HEAD|GET", "/api/version", _version)
    routes.add("HEAD|GET", "/api/tags", models.tags)
    routes.add("GET", "/api/ps", models.ps)
    routes.add("POST", "/api/show", models.show)
    routes.add("GET", "/v1/models", models.openai_list)
    routes.add("GET", "/v1/models/{model:path}", models.openai_one)


def _add_store(routes: Routes, library: Library, create: Create) -> None:
    routes.add("POST", "/api/pull", library.pull)
    routes.add("POST", "/api/push", library.push)
    routes.add("POST", "/api/create", create.create)
    routes.add("HEAD", "/api/blobs/{digest}", create.has_blob)
    routes.add("POST", "/api/blobs/{digest}", create.put_blob)
    routes.add("POST", "/api/copy", library.copy)
    routes.add("DELETE", "/api/delete", library.delete)


def _add_cloud(routes: Routes) -> None:
    routes.add("GET", "/api/status", cloud.status)
    routes.add("POST", "/api/me", cloud.me)
    routes.add("POST", "/api/signout", cloud.sign_out)
    routes.add("DELETE", "/api/user/keys/{key:path}", cloud.sign_out)
    routes.add("POST", "/api/experimental/web_search", cloud.web_search)
    routes.add("POST", "/api/experimental/web_fetch", cloud.web_fetch)
    routes.add("GET", "/api/experimental/model-recommendations", cloud.recommendations)


async def _root(request: Request) -> None:
    await send_bytes(request, 200, "text/plain; charset=utf-8", b"Ollama is running")


async def _version(request: Request) -> None:
    await send_json(request, {"version": OLLAMA_VERSION})
