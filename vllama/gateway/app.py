"""The ASGI application: guard, router, and one place where errors become replies."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from html import escape
from http import HTTPStatus

from vllama import OLLAMA_VERSION
from vllama.asgi import Receive, Scope, Send
from vllama.errors import EngineError, VllamaError
from vllama.gateway import cloud
from vllama.gateway.create import Create
from vllama.gateway.drain import Drain
from vllama.gateway.inference import Inference
from vllama.gateway.library import Library
from vllama.gateway.models import Models
from vllama.gateway.openai import OpenAI
from vllama.gateway.replies import BrokenReply, send_bytes, send_error, send_json, send_text
from vllama.gateway.routing import Request, Router
from vllama.gateway.security import Guard
from vllama.gateway.workers import Workers
from vllama.scheduler.scheduler import Scheduler
from vllama.scheduler.serving import Serving
from vllama.settings import Settings
from vllama.store.model_store import ModelStore

log = logging.getLogger(__name__)
access = logging.getLogger("vllama.access")


_CLIENT_LEFT = 499  # contract §1.1


class Gateway:
    """Serves HTTP over a store and a scheduler."""

    def __init__(
        self, settings: Settings, store: ModelStore, scheduler: Scheduler, serving: Serving | None = None
    ) -> None:
        """Take the parts; `serving` holds the engine flags of all models, none unless given."""
        serving = serving or Serving()
        self._guard = Guard(settings)
        self._drain = Drain()
        self._workers = Workers(store, scheduler)
        self._router = _routes(
            Inference(self._workers, serving),
            OpenAI(self._workers, serving),
            Models(store, scheduler, serving),
            Library(store),
            Create(store, serving.check_adapter),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return  # started without lifespan; WebSockets are refused by the server
        received = time.monotonic_ns()
        headers = dict(scope["headers"])
        verdict = self._guard.judge(scope["method"], headers)
        request = Request(
            method=scope["method"],
            path=re.sub("/{2,}", "/", scope["path"]),
            scope=scope,
            receive=receive,
            send=send,
            headers=headers,
            received=received,
            extra_headers=verdict.headers,
            drain=self._drain,
        )
        if hosts := _wrong_hosts(scope):
            body = f"400 Bad Request: {hosts}".encode()
            await send_bytes(request, 400, "text/plain; charset=utf-8", body, ((b"connection", b"close"),))
            return
        if verdict.refused:
            await send_bytes(request, verdict.status, "", b"", self._allowed(request))
            return
        try:
            await self._dispatch(request)
        except VllamaError as error:
            await send_error(request, error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The client left before it had sent all of its request (vllama.asgi.read_body).
        finally:
            took = (time.monotonic_ns() - received) / 1e6
            status = request.status or _CLIENT_LEFT
            access.info("%3d %8.1f ms  %s %s", status, took, request.method, request.path)

    async def _dispatch(self, request: Request) -> None:
        found = self._router.find(request.method, request.path)
        if callable(found):
            try:
                await found(request)
            except (VllamaError, BrokenReply):
                raise
            except Exception as error:
                if request.status:
                    raise
                log.exception("%s %s failed", request.method, request.path)
                raise EngineError("internal error, check the server's log") from error
            return
        if found is None and request.path != "/" and request.path.endswith("/"):
            slashless = request.path.rstrip("/")
            if self._router.find(request.method, slashless):
                await _redirect(request, slashless)
                return
        if found is None:
            await send_text(request, 404, "404 page not found")
        else:
            await send_text(request, 405, "405 method not allowed", self._allowed(request))

    def _allowed(self, request: Request) -> tuple[tuple[bytes, bytes], ...]:
        """The Allow header, where the path has other methods only; also when the guard answers, as recorded."""
        found = self._router.find(request.method, request.path)
        return ((b"allow", ", ".join(found).encode()),) if isinstance(found, tuple) else ()

    def end_replies(self) -> None:
        """End all replies under way, each with an error in its own format: the server stops."""
        self._workers.end_replies()
        self._drain.end()

    def adopt(self, settings: Settings) -> None:
        """Judge requests by these settings from now on."""
        self._guard = Guard(settings)

    def close(self) -> None:
        """Close the connections to the workers."""
        self._workers.close()


def _routes(inference: Inference, openai: OpenAI, models: Models, library: Library, create: Create) -> Router:
    router = Router()
    router.add("HEAD|GET", "/", _root)
    router.add("HEAD|GET", "/api/version", _version)
    router.add("GET", "/api/status", cloud.status)
    router.add("POST", "/api/me", cloud.me)
    router.add("POST", "/api/signout", cloud.sign_out)
    router.add("DELETE", "/api/user/keys/*", cloud.sign_out)
    router.add("POST", "/api/experimental/web_search", cloud.web_search)
    router.add("POST", "/api/experimental/web_fetch", cloud.web_fetch)
    router.add("GET", "/api/experimental/model-recommendations", cloud.recommendations)
    router.add("HEAD|GET", "/api/tags", models.tags)
    router.add("GET", "/api/ps", models.ps)
    router.add("POST", "/api/show", models.show)
    router.add("POST", "/api/pull", library.pull)
    router.add("POST", "/api/push", library.push)
    router.add("POST", "/api/create", create.create)
    router.add("HEAD", "/api/blobs/:digest", create.has_blob)
    router.add("POST", "/api/blobs/:digest", create.put_blob)
    router.add("POST", "/api/copy", library.copy)
    router.add("DELETE", "/api/delete", library.delete)
    router.add("POST", "/api/generate", inference.generate)
    router.add("POST", "/api/chat", inference.chat)
    router.add("POST", "/api/embed", inference.embed)
    router.add("POST", "/api/embeddings", inference.embeddings)
    router.add("GET", "/v1/models", models.openai_list)
    router.add("GET", "/v1/models/*", models.openai_one)
    openai.add_routes(router)
    return router


def _wrong_hosts(scope: Scope) -> str:
    """What is wrong with the number of Host headers, in Go's words; on it rests the guard against DNS rebinding."""
    number = [name for name, _ in scope["headers"]].count(b"host")
    if number > 1:
        return "too many Host headers"
    return "" if number or scope["http_version"] == "1.0" else "missing required Host header"


async def _root(request: Request) -> None:
    await send_bytes(request, 200, "text/plain; charset=utf-8", b"Ollama is running")


async def _version(request: Request) -> None:
    await send_json(request, {"version": OLLAMA_VERSION})


async def _redirect(request: Request, path: str) -> None:
    """To the path without its last slash, as Go's router does: 301 for GET, 307 where there is a body."""
    status = HTTPStatus.MOVED_PERMANENTLY if request.method == "GET" else HTTPStatus.TEMPORARY_REDIRECT
    query = request.scope["query_string"].decode("latin-1")
    location = f"{path}?{query}" if query else path
    body, content_type = b"", ""
    if request.method == "GET":
        body = f'<a href="{escape(location)}">{status.phrase}</a>.\n\n'.encode()
        content_type = "text/html; charset=utf-8"
    await send_bytes(request, status, content_type, body, ((b"location", location.encode()),))
