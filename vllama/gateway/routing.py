"""Requests and their routes, with the behaviour of Ollama's router (contract §1.0)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from vllama.asgi import Receive, Scope, Send
from vllama.gateway.drain import Drain
from vllama.keys.key import Key

if TYPE_CHECKING:
    from vllama.gateway.bodies import Bodies
    from vllama.gateway.metering import Meter

REQUEST = "vllama.request"
"""The key of the ASGI scope under which a route finds the Request."""


@dataclass(slots=True)
class Request:
    """A request on its way to its handler.

    `path` is decoded and without doubled slashes; `headers` have lower-case names; `received` is the
    monotonic time of receipt in ns; `extra_headers` belong on the reply (CORS). `status` is that of the
    reply once one has begun, 0 before. `drain` is the server's, which may end long work; `bodies` has the limits of
    bodies, and `held` is what this one counts among all of them. `key` is None if no keys are set up, or the path needs
    none; `meter` counts the tokens of a request with a key. `subject` is the name of the model that the request is
    about, once it is known.
    """

    method: str
    path: str
    scope: Scope
    receive: Receive
    send: Send
    headers: Mapping[bytes, bytes]
    received: int
    bodies: Bodies
    extra_headers: tuple[tuple[bytes, bytes], ...] = ()
    status: int = 0
    drain: Drain = field(default_factory=Drain)
    held: int = 0
    key: Key | None = None
    meter: Meter | None = None
    subject: str = ""

    @property
    def target(self) -> bytes:
        """Path and query for the worker."""
        query: bytes = self.scope["query_string"]
        raw: bytes = self.scope.get("raw_path") or self.path.encode()
        raw = re.sub(rb"/{2,}", b"/", raw.partition(b"?")[0])
        return raw + b"?" + query if query else raw


Handler = Callable[[Request], Awaitable[None]]

_NO_MATCH: tuple[Match, Scope] = (Match.NONE, {})


class RawRoute(BaseRoute):
    """A path whose handlers read and write raw ASGI messages: FastAPI neither parses nor wraps them.

    A final `{name}` matches one part of a path, and a final `{name:path}` any rest.
    `handlers` are by method, in the order of the Allow header.
    """

    def __init__(self, path: str, handlers: dict[str, Handler]) -> None:
        self.path = path
        self.handlers = handlers
        self._prefix, _, parameter = path.partition("{")
        self._has_parameter = bool(parameter)
        self._takes_slashes = parameter.endswith(":path}")

    def is_for(self, path: str) -> bool:
        """Return whether the route is for this path, with any method."""
        if not self._has_parameter:
            return path == self.path
        prefix = self._prefix
        return (
            path.startswith(prefix)
            and len(path) > len(prefix)
            and (self._takes_slashes or "/" not in path[len(prefix) :])
        )

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return how well a request fits. A prefix with another method is no match: the reply is 404, not 405."""
        path = scope["path"]
        # The router asks every route in turn, so a path without parameter is compared without a further call.
        if path != self.path if not self._has_parameter else not self.is_for(path):
            return _NO_MATCH
        if scope["method"] in self.handlers:
            return Match.FULL, {}
        return _NO_MATCH if self._takes_slashes else (Match.PARTIAL, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the Request has them
        """Call the handler. Raises HTTPException (405) if the path has only other methods."""
        request: Request = scope[REQUEST]
        handler = self.handlers.get(request.method)
        if handler is None:
            raise HTTPException(405, headers={"Allow": self.allow})
        await handler(request)

    @property
    def allow(self) -> str:
        """The Allow header."""
        return ", ".join(self.handlers)


class Routes:
    """The server's routes, one for each path, in the order in which the router tries them."""

    def __init__(self) -> None:
        self._routes: dict[str, RawRoute] = {}
        self._around: Callable[[Handler], Handler] = lambda handler: handler

    def within(self, around: Callable[[Handler], Handler]) -> Routes:
        """Return the same routes; the handlers that are added by way of them are changed by `around`."""
        part = Routes()
        part._routes, part._around = self._routes, around
        return part

    def add(self, methods: str, path: str, handler: Handler) -> None:
        """Route `GET|HEAD`-style methods of a path to a handler."""
        route = self._routes.setdefault(path, RawRoute(path, {}))
        route.handlers.update(dict.fromkeys(methods.split("|"), self._around(handler)))

    def all(self) -> list[RawRoute]:
        """Return the routes."""
        return list(self._routes.values())

    def find(self, scope: Scope) -> RawRoute | None:
        """Return the route that the router would choose, even for another method; None if the path does not exist."""
        fits = [(route.matches(scope)[0], route) for route in self._routes.values()]
        return next((route for wanted in (Match.FULL, Match.PARTIAL) for fit, route in fits if fit is wanted), None)
