"""Routes of Ollama's cloud, answered like a server without cloud (contract §1.11, §8). No data leaves the server."""

from __future__ import annotations

from vllama.errors import CloudDisabled
from vllama.gateway.replies import send_bytes, send_json
from vllama.gateway.routing import Request
from vllama.ollama.status import JSON, error_body


async def status(request: Request) -> None:
    """Answer `GET /api/status` as a server without cloud."""
    await send_json(request, {"cloud": {"disabled": True, "source": "env"}})


async def me(request: Request) -> None:
    """Answer `POST /api/me`: no user is signed in."""
    await send_bytes(request, 401, JSON, error_body("unauthorized"))


async def sign_out(request: Request) -> None:
    """Answer `POST /api/signout` and `DELETE /api/user/keys/KEY`."""
    await send_bytes(request, 401, JSON, error_body("you are not currently signed in"))


async def web_search(request: Request) -> None:
    """Refuse `POST /api/experimental/web_search` with Ollama's error."""
    del request
    raise CloudDisabled("web search is unavailable")


async def web_fetch(request: Request) -> None:
    """Refuse `POST /api/experimental/web_fetch` with Ollama's error."""
    del request
    raise CloudDisabled("web fetch is unavailable")


async def recommendations(request: Request) -> None:
    """Answer `GET /api/experimental/model-recommendations`: none, because Ollama's are cloud models or GGUF."""
    await send_json(request, {"recommendations": []})
