"""`/api/create`, and `/api/blobs` for the files that models are made of (contract §1.9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from vllama.asgi import Receive, read_body
from vllama.errors import BlobNotFound
from vllama.gateway.replies import send_bytes
from vllama.gateway.routing import Request
from vllama.gateway.steps import send_steps
from vllama.ollama.creation import CreateRequest
from vllama.store.base import has_content
from vllama.store.blobs import Blobs, parse_digest
from vllama.store.create import Check, Puller, create
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

_PIECE = 1 << 20
"""Bytes that are gathered before a thread writes and hashes them."""


class Create:
    """The routes that make models."""

    def __init__(self, store: ModelStore, check: Check, puller: Puller = pull) -> None:
        self._store = store
        self._check = check
        self._puller = puller
        self._blobs = Blobs(store.root)

    async def create(self, request: Request) -> None:
        """`POST /api/create`: steps as NDJSON; what goes wrong after the first step is said in the stream."""
        asked = CreateRequest.parse(await read_body(request.receive))
        steps = create(
            self._store,
            asked.name,
            asked.changes,
            base=asked.base,
            files=asked.files,
            adapters=asked.adapters,
            puller=self._puller,
            check=self._check,
        )
        await send_steps(request, steps, stream=asked.stream)

    async def has_blob(self, request: Request) -> None:
        """`HEAD /api/blobs/:digest`: whether the file need not be uploaded."""
        digest = _digest(request)
        if not await asyncio.to_thread(has_content, self._store, parse_digest(digest)):
            raise BlobNotFound(digest)
        await send_bytes(request, 200, "", b"")

    async def put_blob(self, request: Request) -> None:
        """`POST /api/blobs/:digest`: the body is the file. It goes to disk as it comes; half of one leaves nothing."""
        digest = _digest(request)
        sha256 = parse_digest(digest)
        if await asyncio.to_thread(has_content, self._store, sha256):
            await send_bytes(request, 200, "", b"")
            return
        with await asyncio.to_thread(self._blobs.receive, sha256, digest) as upload:
            async for piece in _pieces(request.receive):
                await asyncio.to_thread(upload.write, piece)
            await asyncio.to_thread(upload.finish)
        await send_bytes(request, 201, "", b"")


def _digest(request: Request) -> str:
    return request.path.rpartition("/")[2]


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    """The body, in pieces of about a megabyte. Raises asyncio.CancelledError where the client left before its end."""
    gathered: list[bytes] = []
    size = 0
    while (message := await receive())["type"] == "http.request":
        gathered.append(message.get("body", b""))
        size += len(gathered[-1])
        is_last = not message.get("more_body")
        if size >= _PIECE or is_last:
            yield b"".join(gathered)
            gathered, size = [], 0
        if is_last:
            return
    raise asyncio.CancelledError
