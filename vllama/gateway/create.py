"""Routes `/api/create`, and `/api/blobs` for uploads (contract §1.9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from vllama.asgi import Receive
from vllama.errors import BlobNotFound
from vllama.gateway.bodies import read_body
from vllama.gateway.replies import send_bytes
from vllama.gateway.routing import Request
from vllama.gateway.steps import send_steps
from vllama.gateway.transfers import Transfers
from vllama.machine.threads import Threads
from vllama.ollama.creation import CreateRequest
from vllama.store.blobs import Blobs, parse_digest
from vllama.store.create import Check, Puller, create
from vllama.store.model_import import has_content
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

_PIECE = 1 << 20
"""Bytes to collect before a thread writes and hashes them."""

_UPLOAD_THREADS = 8


class Create:
    """The routes that create models."""

    def __init__(
        self, store: ModelStore, check: Check, transfers: Transfers, threads: Threads, puller: Puller = pull
    ) -> None:
        """Take the running creations, and the threads for short work on the store; uploads have their own."""
        self._store = store
        self._transfers = transfers
        self._threads = threads
        self._uploads = Threads("upload", _UPLOAD_THREADS)
        self._check = check
        self._puller = puller
        self._blobs = Blobs(store.root)

    async def create(self, request: Request) -> None:
        """Answer `POST /api/create` with steps as NDJSON; errors after the first step are in the stream."""
        asked = CreateRequest.parse(await read_body(request))
        request.subject = asked.name.display
        steps = self._transfers.watch(
            lambda: create(
                self._store.converting(asked.precision),
                asked.name,
                asked.changes,
                base=asked.base,
                files=asked.files,
                adapters=asked.adapters,
                puller=self._puller,
                check=self._check,
            )
        )
        await send_steps(request, steps, stream=asked.stream)

    async def has_blob(self, request: Request) -> None:
        """Answer `HEAD /api/blobs/:digest`: whether the file is already known."""
        digest = _digest(request)
        if not await self._threads.run(has_content, self._store, parse_digest(digest)):
            raise BlobNotFound(digest)
        await send_bytes(request, 200, "", b"")

    async def put_blob(self, request: Request) -> None:
        """Answer `POST /api/blobs/:digest`: stream the body to disk; an incomplete body leaves no file."""
        digest = _digest(request)
        sha256 = parse_digest(digest)
        if await self._threads.run(has_content, self._store, sha256):
            await send_bytes(request, 200, "", b"")
            return
        with await self._uploads.run(self._blobs.receive, sha256, digest) as upload:
            async for piece in _pieces(request.receive):
                await self._uploads.run(upload.write, piece)
            await self._uploads.run(upload.finish)
        await send_bytes(request, 201, "", b"")


def _digest(request: Request) -> str:
    return request.path.rpartition("/")[2]


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the body in pieces of about a megabyte. Raises asyncio.CancelledError after a disconnect."""
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
