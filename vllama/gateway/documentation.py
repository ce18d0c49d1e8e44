"""`/openapi.json`, `/docs` and the files of that page, none of which comes from another host. Ollama has neither."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import orjson

from vllama.gateway.replies import send_bytes
from vllama.gateway.routing import Handler, Request, Routes

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon.png": "image/png",
}

PATHS = ("/openapi.json", "/docs", *(f"/docs/{name}" for name in _ASSETS))
"""All paths about the API rather than of it; the document does not list them."""

# The browser may load nothing from other hosts, and other pages may not embed this one and steal clicks.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)


def add_routes(routes: Routes, openapi: Callable[[], dict[str, Any]]) -> None:
    """Add the document that `openapi` returns, the page that shows it, and the page's files."""

    async def send_document(request: Request) -> None:
        body = orjson.dumps(await asyncio.to_thread(openapi))
        await send_bytes(request, 200, "application/json", body)

    routes.add("HEAD|GET", "/openapi.json", send_document)
    routes.add("HEAD|GET", "/docs", _send_page)
    for name, content_type in _ASSETS.items():
        routes.add("HEAD|GET", f"/docs/{name}", _sending_asset(name, content_type))


async def _send_page(request: Request) -> None:
    """Answer `GET /docs`. Links are relative, because a proxy may serve us under a prefix."""
    from fastapi.openapi.docs import get_swagger_ui_html

    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="vllama: API",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
        swagger_ui_parameters={"validatorUrl": None},  # otherwise the page asks a validator on the internet
    )
    policy = ((b"content-security-policy", _POLICY.encode()),)
    await send_bytes(request, 200, "text/html; charset=utf-8", bytes(page.body), policy)


def _sending_asset(name: str, content_type: str) -> Handler:
    async def send_asset(request: Request) -> None:
        body = await asyncio.to_thread(_read_asset, name)
        await send_bytes(request, 200, content_type, body)

    return send_asset


def _read_asset(name: str) -> bytes:
    return (files("fastapi_offline") / "static" / name).read_bytes()
