"""Paths to handlers, with the manners of Ollama's router (contract §1.0)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from vllama.asgi import Receive, Scope, Send
from vllama.gateway.drain import Drain


@dataclass(slots=True)
class Request:
    """A request on its way to its handler.

    `path` is decoded and without doubled slashes; `headers` have lower-case names; `received` is the
    monotonic time of receipt in ns; `extra_headers` belong on the reply (CORS). `status` is that of the
    reply once one has begun, 0 before. `drain` is the server's, which may end long work.
    """

    method: str
    path: str
    scope: Scope
    receive: Receive
    send: Send
    headers: Mapping[bytes, bytes]
    received: int
    extra_headers: tuple[tuple[bytes, bytes], ...] = ()
    status: int = 0
    drain: Drain = field(default_factory=Drain)

    @property
    def target(self) -> bytes:
        """Path and query as they go to a worker."""
        query: bytes = self.scope["query_string"]
        raw: bytes = self.scope.get("raw_path") or self.path.encode()
        raw = re.sub(rb"/{2,}", b"/", raw.partition(b"?")[0])
        return raw + b"?" + query if query else raw


Handler = Callable[[Request], Awaitable[None]]


@dataclass(slots=True)
class Router:
    """Exact paths, paths whose last part is a parameter, and prefixes for what is passed on as it is."""

    exact: dict[str, dict[str, Handler]] = field(default_factory=dict)
    prefixes: list[tuple[str, str, Handler]] = field(default_factory=list)

    def add(self, methods: str, path: str, handler: Handler) -> None:
        """Route `GET|HEAD`-style methods of a path.

        `/:name` at its end stands for one part, and `*` for all that begins so.
        """
        for method in methods.split("|"):
            if path.endswith("*"):
                self.prefixes.append((method, path[:-1], handler))
            else:
                self.exact.setdefault(re.sub("/:[a-z]+$", "/:", path), {})[method] = handler

    def find(self, method: str, path: str) -> Handler | tuple[str, ...] | None:
        """The handler, the methods that the path does have, or None where there is no such path."""
        methods = self.exact.get(path) or self.exact.get(_with_parameter(path))
        if methods and (handler := methods.get(method)):
            return handler
        if methods:
            return tuple(methods)
        for prefix_method, prefix, handler in self.prefixes:
            if method == prefix_method and path.startswith(prefix) and len(path) > len(prefix):
                return handler
        return None


def _with_parameter(path: str) -> str:
    parent, _, last = path.rpartition("/")
    return f"{parent}/:" if last else path
