"""Lists of models: `/api/tags`, `/api/show`, `/api/ps`, `/v1/models` (contract §4, §5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote

import orjson

from vllama.errors import ManifestCorrupt, ModelNotFound, RequestError
from vllama.gateway.access import check_model, may_use
from vllama.gateway.bodies import read_small_body
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
# The CLI shows "Forever" beyond 20 years; Go's times end 292 years after 2026 (contract §4.3).
_FOREVER = timedelta(days=200 * 365)


class Models:
    """The routes that list models, answered from the store and the scheduler's table without the engines."""

    def __init__(self, store: ModelStore, scheduler: Scheduler, serving: Serving) -> None:
        self._store = store
        self._serving = serving
        self._scheduler = scheduler

    async def tags(self, request: Request) -> None:
        """Answer `GET /api/tags` with all stored models."""

        def is_listed(manifest: Manifest) -> bool:
            return may_use(request, manifest.name)

        await send_json(request, listing.tags_reply(self._store, self._serving.describe, is_listed))

    async def ps(self, request: Request) -> None:
        """Answer `GET /api/ps`, including loading models; with `?all=true` also sleeping ones, states and all workers.

        Without it, a model that has a second worker for its embeddings is one model, as with Ollama.
        """
        views = [view for view in self._scheduler.residents() if may_use(request, view.manifest.name)]
        if b"all=true" in request.scope["query_string"].split(b"&"):
            embeds = ({"embeds": True} if view.manifest.embeds else {} for view in views)
            items = [{**_ps_item(view), "state": view.state, **more} for view, more in zip(views, embeds, strict=True)]
        else:
            items = _one_for_each_model([view for view in views if view.is_loaded])
        await send_json(request, {"models": items})

    async def show(self, request: Request) -> None:
        """Answer `POST /api/show` with a model's details."""
        fields = Fields(decode(await read_small_body(request)), "ShowRequest", _SHOW)
        asked = fields.string("model") or fields.string("name")
        if not asked:
            raise RequestError("model is required")
        manifest = self._find(request, asked)
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
        """Answer `GET /v1/models` with all stored models."""
        items = [
            _openai_item(manifest, manifest.name.display)
            for manifest in self._store.list()
            if may_use(request, manifest.name)
        ]
        await _send_openai(request, {"object": "list", "data": items})

    async def openai_one(self, request: Request) -> None:
        """Answer `GET /v1/models/NAME`; the name may contain slashes."""
        asked = unquote(request.path[len(_MODELS) :])
        await _send_openai(request, _openai_item(self._find(request, asked), asked))

    def _find(self, request: Request, asked: str) -> Manifest:
        name = ModelName.parse(asked)
        check_model(request, name)
        try:
            return self._store.get(name)
        except ModelNotFound:
            raise ModelNotFound(asked) from None

    def _served_context(self, manifest: Manifest) -> int | None:
        engine = self._serving.engine_of(manifest)
        for view in self._scheduler.residents():
            if view.engine == engine:
                return view.context_length or None  # unknown while it loads
        return None


async def _send_openai(request: Request, value: dict[str, Any]) -> None:
    """Send JSON as Ollama does on /v1: without a charset, and with a newline at the end."""
    await send_bytes(request, 200, "application/json", orjson.dumps(value) + b"\n")


def _one_for_each_model(views: Sequence[ResidentView]) -> list[dict[str, Any]]:
    """Return a row for each name; `views` come with the latest expiry first, and memory is added up."""
    rows: dict[str, dict[str, Any]] = {}
    for view in views:
        item, name = _ps_item(view), view.manifest.name.key
        first = rows.setdefault(name, item)
        if first is not item:
            kept = first if view.manifest.embeds else item
            sizes = {key: first[key] + item[key] for key in ("size", "size_vram")}
            rows[name] = {**kept, **sizes, "expires_at": first["expires_at"]}
    return list(rows.values())


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
    if view.load is not None:  # Ollama's clients ignore unknown keys
        item["load"] = {"phase": view.load.phase, "percent": view.load.percent, "line": view.load.line}
    return item


def _shown(manifest: Manifest) -> tuple[dict[str, Any], int]:
    """Return details and context length; mostly empty if its files were removed after the load."""
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
