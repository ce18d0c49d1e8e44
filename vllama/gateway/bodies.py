"""Request bodies of `/v1`: compressed ones, and forms (contract §1.1, §5.6)."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator

import zstandard
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from vllama.asgi import read_body
from vllama.errors import BodyTooLarge, RequestError
from vllama.gateway.routing import Request

LARGEST_UNPACKED = 20 << 20
"""Bytes that a compressed body may have in the end: Ollama's limit."""

LARGEST_FORM = 26 << 20
"""Bytes of a whole form: Ollama takes 25 MiB of sound, and the rest is small."""

_TOO_LARGE = "http: request body too large"


async def read_json_body(request: Request) -> bytes:
    """The whole body, unpacked where it says that it is zstd. Raises RequestError where that cannot be."""
    body = await read_body(request.receive)
    if request.headers.get(b"content-encoding", b"").strip().lower() != b"zstd":
        return body
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            unpacked = reader.read(LARGEST_UNPACKED + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise RequestError(f"the body is not valid zstd: {error}") from None
    if len(unpacked) > LARGEST_UNPACKED:
        raise RequestError(_TOO_LARGE)
    return unpacked


async def read_form_body(request: Request) -> bytes:
    """The whole body of a form. Raises RequestError where it is larger than LARGEST_FORM."""
    try:
        return await read_body(request.receive, most=LARGEST_FORM)
    except BodyTooLarge:
        raise RequestError(_TOO_LARGE) from None


async def model_of_form(request: Request, body: bytes) -> str:
    """The field `model` of a multipart form, "" where it has none. Raises RequestError for anything else."""
    if not request.headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data"):
        raise RequestError("request Content-Type isn't multipart/form-data")
    parser = MultiPartParser(Headers(raw=list(request.headers.items())), _at_once(body))
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise RequestError(f"the form cannot be read: {error}") from None
    model = form.get("model")
    await form.close()
    return model if isinstance(model, str) else ""


async def _at_once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
