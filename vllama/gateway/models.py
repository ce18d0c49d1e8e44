"""What models there are: `/api/tags`, `/api/show`, `/api/ps`, `/v1/models` (contract §4, §5.3)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote

import orjson

from vllama.asgi import read_body
from vllama.errors import ManifestCorrupt, ModelNotFound, RequestError
from vllama.gateway.replies import send_bytes, send_json
from vllama.gateway.routing import Request
from vllama.names import ModelName
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.scheduler.resident import ResidentView
from vllama.scheduler.scheduler import Scheduler
from vllama.scheduler.serving import Serving
from vllama.store import listing
from vllama.store.description import describe
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore

_SHOW = known_fields("model", "name", "verbose", "system", "template", "options")
_MODELS = "/v1/models/"
# The CLI shows "Forever" beyond 20 years; Go's times on the wire end 292 years from 2026 (contract §4.3).
_FOREVER = timedelta(days=200 * 365)


class Models:
    """Answers from the store and the scheduler's table, whatever the engines do meanwhile."""

    def __init__(self, store: ModelStore, scheduler: Scheduler, serving: Serving) -> None:
        self._store = store
        self._serving = serving
        self._scheduler = scheduler

    async def tags(self, request: Request) -> None:
        """`GET /api/tags`."""
        await send_json(request, listing.tags_reply(self._store, self._serving.describe))

    async def ps(self, request: Request) -> None:
        """`GET /api/ps`: those that load too; with `?all=true` also those that sleep, and the state of each."""
        views = self._scheduler.residents()
        if b"all=true" in request.scope["query_string"].split(b"&"):
            items = [{**_ps_item(view), "state": view.state} for view in views]
        else:
            items = [_ps_item(view) for view in views if view.is_loaded]
        await send_json(request, {"models": items})

    async def show(self, request: Request) -> None:
        """`POST /api/show`."""
        fields = Fields(decode(await read_body(request.receive)), "ShowRequest", _SHOW)
        asked = fields.string("model") or fields.string("name")
        if not asked:
            raise RequestError("model is required")
        manifest = self._find(asked)
        agent = request.headers.get(b"user-agent", b"")
        reply = listing.show_reply(
            manifest,
            self._serving.describe(manifest),
            verbose=fields.boolean("verbose") or False,
            system=fields.string("system"),
            options=fields.mapping("options"),
            basename=asked if agent.startswith(b"GitHubCopilotChat/") else None,
            served_context=self._served_context(manifest),
        )
        await send_json(request, reply)

    async def openai_list(self, request: Request) -> None:
        """`GET /v1/models`."""
        items = [_openai_item(manifest, manifest.name.display) for manifest in self._store.list()]
        await _send_openai(request, {"object": "list", "data": items})

    async def openai_one(self, request: Request) -> None:
        """`GET /v1/models/NAME`; the name may hold slashes."""
        asked = unquote(request.path[len(_MODELS) :])
        await _send_openai(request, _openai_item(self._find(asked), asked))

    def _find(self, asked: str) -> Manifest:
        try:
            return self._store.get(ModelName.parse(asked))
        except ModelNotFound:
            raise ModelNotFound(asked) from None

    def _served_context(self, manifest: Manifest) -> int | None:
        engine = self._serving.engine_of(manifest)
        for view in self._scheduler.residents():
            if view.engine == engine:
                return view.context_length or None  # not known while it loads
        return None


async def _send_openai(request: Request, value: dict[str, Any]) -> None:
    """Send JSON as Ollama does on /v1: it names no charset, and ends with a line end."""
    await send_bytes(request, 200, "application/json", orjson.dumps(value) + b"\n")


def _ps_item(view: ResidentView) -> dict[str, Any]:
    details, context_length = _shown(view.manifest)
    now = datetime.now().astimezone()
    expires = datetime.fromtimestamp(view.expires_at).astimezone() if view.expires_at is not None else now + _FOREVER
    item = {
        "name": view.manifest.name.display,
        "model": view.manifest.name.display,
        "size": view.memory.total,
        "digest": view.manifest.digest,
        "details": details,
        "expires_at": expires.isoformat(),
        "size_vram": view.memory.gpu,
        "context_length": view.context_length or context_length,
    }
    if view.load is not None:  # Ollama's clients pass over what they do not know
        item["load"] = {"phase": view.load.phase, "percent": view.load.percent, "line": view.load.line}
    return item


def _shown(manifest: Manifest) -> tuple[dict[str, Any], int]:
    """Details and context length; little is known of one whose files were removed after it was loaded."""
    try:
        description = describe(manifest)
    except ManifestCorrupt:
        unknown = dict.fromkeys(("parent_model", "format", "family", "parameter_size", "quantization_level"), "")
        return {**unknown, "families": None}, 0
    return listing.details(description), description.context_length


def _openai_item(manifest: Manifest, shown: str) -> dict[str, Any]:
    return {
        "id": shown,
        "object": "model",
        "created": int(manifest.modified_at.timestamp()),
        "owned_by": manifest.name.namespace,
    }
