"""What Ollama sends to its cloud, answered as by a server that has none (contract §1.11, §8). Nothing phones home."""

from __future__ import annotations

from vllama.errors import CloudDisabled
from vllama.gateway.replies import send_bytes, send_json
from vllama.gateway.routing import Request
from vllama.ollama.status import JSON, error_body


async def status(request: Request) -> None:
    """`GET /api/status`."""
    await send_json(request, {"cloud": {"disabled": True, "source": "env"}})


async def me(request: Request) -> None:
    """`POST /api/me`: nobody is signed in."""
    await send_bytes(request, 401, JSON, error_body("unauthorized"))


async def sign_out(request: Request) -> None:
    """`POST /api/signout`, `DELETE /api/user/keys/KEY`."""
    await send_bytes(request, 401, JSON, error_body("you are not currently signed in"))


async def web_search(request: Request) -> None:
    """`POST /api/experimental/web_search`."""
    del request
    raise CloudDisabled("web search is unavailable")


async def web_fetch(request: Request) -> None:
    """`POST /api/experimental/web_fetch`."""
    del request
    raise CloudDisabled("web fetch is unavailable")


async def recommendations(request: Request) -> None:
    """`GET /api/experimental/model-recommendations`: all of Ollama's are of its cloud or in GGUF."""
    await send_json(request, {"recommendations": []})
