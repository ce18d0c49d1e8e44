"""Checks before routing, the access log, and the one place that turns errors into replies."""

from __future__ import annotations

import asyncio
import logging
import re
import string
import time
from collections.abc import Callable, Mapping
from html import escape
from http import HTTPStatus
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from vllama.asgi import Receive, Scope, Send
from vllama.errors import EngineError, VllamaError
from vllama.gateway.access import Access
from vllama.gateway.bodies import Bodies
from vllama.gateway.drain import Drain
from vllama.gateway.replies import BrokenReply, send_bytes, send_error, send_text
from vllama.gateway.routing import REQUEST, Request, Routes
from vllama.gateway.security import Guard
from vllama.log_lines import escaped

log = logging.getLogger(__name__)
access = logging.getLogger("vllama.access")

_CLIENT_LEFT = 499  # contract §1.1


class OllamaMiddleware:
    """Check and log requests and answer errors as Ollama does. Handlers get the server's own `receive` and `send`."""

    def __init__(
        self, app: ASGIApp, *, routes: Routes, guard: Callable[[], Guard], access: Access, drain: Drain, bodies: Bodies
    ) -> None:
        """Wrap `app`, which routes to `routes`. `guard` returns the current guard, which a reload may replace."""
        self._app = app
        self._routes = routes
        self._guard = guard
        self._access = access
        self._drain = drain
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return  # started without lifespan; WebSockets are refused by the server
        received = time.monotonic_ns()
        headers = dict(scope["headers"])
        verdict = self._guard().judge(scope["method"], headers, needs_key=self._access.needs_key)
        path = scope["path"]
        if "//" in path:
            path = scope["path"] = re.sub("/{2,}", "/", path)
        request = scope[REQUEST] = Request(
            method=scope["method"],
            path=path,
            scope=scope,
            receive=receive,
            send=send,
            headers=headers,
            received=received,
            bodies=self._bodies,
            extra_headers=verdict.headers,
            drain=self._drain,
        )
        if hosts := _wrong_hosts(scope, headers):
            body = f"400 Bad Request: {hosts}".encode()
            await send_bytes(request, 400, "text/plain; charset=utf-8", body, ((b"connection", b"close"),))
            return
        if verdict.refused:
            await send_bytes(request, verdict.status, "", b"", self._allowed(request))
            return
        try:
            self._access.authenticate(request)
            await self._answer(request)
        except VllamaError as error:
            await send_error(request, error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The client disconnected before it had sent its whole request (vllama.asgi.read_body).
        finally:
            if request.held:
                self._bodies.release(request)
            took = (time.monotonic_ns() - received) / 1e6
            status = request.status or _CLIENT_LEFT
            access.info("%3d %8.1f ms  %s %s", status, took, request.method, escaped(request.path))

    async def _answer(self, request: Request) -> None:
        try:
            await self._app(request.scope, request.receive, request.send)
        except HTTPException as refusal:
            await self._refuse(request, refusal)
        except (VllamaError, BrokenReply):
            raise
        except Exception as error:
            if request.status:
                raise
            log.exception("%s %s failed", request.method, escaped(request.path))
            raise EngineError("internal error; check the server's log") from error

    async def _refuse(self, request: Request, refusal: HTTPException) -> None:
        """Answer 404 or 405 with Ollama's texts, or redirect a path that ends with a slash."""
        if refusal.status_code == 405:
            await send_text(request, 405, "405 method not allowed", self._allowed(request))
            return
        if request.path != "/" and request.path.endswith("/"):
            slashless = request.path.rstrip("/")
            if self._routes.find({**request.scope, "path": slashless}):
                await _redirect(request, slashless)
                return
        await send_text(request, 404, "404 page not found")

    def _allowed(self, request: Request) -> tuple[tuple[bytes, bytes], ...]:
        """Return the Allow header if the path has only other methods; the guard's replies have it too, as recorded."""
        route = self._routes.find(request.scope)
        if route is None or request.method in route.handlers:
            return ()
        return ((b"allow", route.allow.encode()),)


def _wrong_hosts(scope: Scope, headers: Mapping[bytes, bytes]) -> str:
    """Return Go's error for a missing, second or malformed Host; the guard against DNS rebinding relies on it."""
    if len(headers) != len(scope["headers"]) and [name for name, _ in scope["headers"]].count(b"host") > 1:
        return "too many Host headers"
    if b"host" in headers:
        return "malformed Host header" if headers[b"host"].translate(None, _IN_A_HOST) else ""
    return "" if scope["http_version"] == "1.0" else "missing required Host header"


_IN_A_HOST = (string.ascii_letters + string.digits + "!$%&'()*+,-.:;=@[]_~").encode()
"""Characters that Go allows in a Host header (`golang.org/x/net/http/httpguts: ValidHostHeader`)."""


async def _redirect(request: Request, path: str) -> None:
    """Redirect to the path without its last slash, as Go's router does: 301 for GET, else 307."""
    status = HTTPStatus.MOVED_PERMANENTLY if request.method == "GET" else HTTPStatus.TEMPORARY_REDIRECT
    query = request.scope["query_string"].decode("latin-1")
    path = quote(path, safe="/!$&'()*+,;=:@")  # it was decoded, and may hold line breaks now
    location = f"{path}?{query}" if query else path
    body, content_type = b"", ""
    if request.method == "GET":
        body = f'<a href="{escape(location)}">{status.phrase}</a>.\n\n'.encode()
        content_type = "text/html; charset=utf-8"
    await send_bytes(request, status, content_type, body, ((b"location", location.encode()),))
