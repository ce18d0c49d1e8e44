"""Request bodies: their limits, those of all requests together, compressed ones, and forms (contract §1.1, §5.6)."""

from __future__ import annotations

import asyncio
import ctypes
import io
from collections.abc import AsyncGenerator
from functools import partial

import zstandard
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from vllama import asgi
from vllama.errors import BodyTooLarge, NoRoomForBody, RequestError, TooManyValues
from vllama.gateway.routing import Request
from vllama.machine.host import host_memory
from vllama.settings import Settings

LARGEST_UNPACKED = 20 << 20
"""Maximum bytes of a decompressed body: Ollama's limit."""

LARGEST_FORM = 26 << 20
"""Maximum bytes of a form: Ollama accepts 25 MiB of audio, and the rest is small."""

_TOO_LARGE = "http: request body too large"

_NOT_HELD = 1 << 20
"""Bytes up to which a body does not count among those of all requests."""

_PAUSE_SECONDS = 1.0
"""Seconds from the end of the last request with a large body until its memory is given back: first it must be free."""

_CONTAINER = 40
"""Number of values that an object or array counts as: each takes 72 bytes, and microseconds of the event loop."""

_FEW_CONTAINERS, _FEW_VALUES = 128 << 10, 8 << 20
"""Bytes of bodies whose containers, and whose other values, are not counted, because they do no harm."""


class Bodies:
    """Limits of bodies, and the memory that those of running requests take."""

    def __init__(self, settings: Settings) -> None:
        self.adopt(settings)
        self._held = 0
        self._returns_memory = False

    def adopt(self, settings: Settings) -> None:
        """Use the limits of these settings from now on."""
        share = settings.max_bodies_size
        self._all = int(share * host_memory().total) if isinstance(share, float) else share
        self.most = settings.max_body_size
        self.small = settings.max_small_body_size
        self.values = settings.max_json_values

    def hold(self, request: Request, size: int) -> None:
        """Count this many bytes for a request. Raises NoRoomForBody."""
        if size <= _NOT_HELD:
            return
        if self._held + size - request.held > self._all:
            raise NoRoomForBody
        self._held += size - request.held
        request.held = size

    def release(self, request: Request) -> None:
        """Forget the body of a request that has ended, and give its memory back to the system."""
        self._held -= request.held
        request.held = 0
        if not self._held and not self._returns_memory:
            self._returns_memory = True
            asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._return_memory)

    def _return_memory(self) -> None:
        self._returns_memory = False
        if not self._held:
            asyncio.get_running_loop().run_in_executor(None, _return_free_memory)

    async def read(self, request: Request, most: int | None = None) -> bytes:
        """Return the whole body, of at most `most` bytes.

        Raises BodyTooLarge, NoRoomForBody, and asyncio.CancelledError where the client left before its end.
        """
        most = self.most if most is None else most
        declared = request.headers.get(b"content-length")  # the parser has checked the number
        if declared is not None and int(declared) > most:  # told before the body is sent
            raise BodyTooLarge(most)
        return await asgi.read_body(request.receive, most=most, hold=partial(self.hold, request))


def _return_free_memory() -> None:
    """Have the C library return free memory, of which it keeps as much as large bodies took; only glibc has this."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def read_body(request: Request, most: int | None = None) -> bytes:
    """Return the whole body of a request in JSON, of at most `most` bytes, or what the settings allow.

    Raises BodyTooLarge, TooManyValues, NoRoomForBody, and asyncio.CancelledError where the client left before its end.
    """
    body = await request.bodies.read(request, most)
    check_values(body, request.bodies.values)
    return body


async def read_small_body(request: Request) -> bytes:
    """Return the body of a request that names a model and says little more. Raises what `read_body` does."""
    return await read_body(request, request.bodies.small)


async def read_json_body(request: Request) -> bytes:
    """Read the whole body, decompressing zstd. Raises RequestError if it is invalid."""
    if request.headers.get(b"content-encoding", b"").strip().lower() != b"zstd":
        return await read_body(request)
    body = await request.bodies.read(request)
    request.bodies.hold(request, len(body) + LARGEST_UNPACKED)
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            unpacked = reader.read(LARGEST_UNPACKED + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise RequestError(f"the body is not valid zstd: {error}") from None
    if len(unpacked) > LARGEST_UNPACKED:
        raise RequestError(_TOO_LARGE)
    check_values(unpacked, request.bodies.values)
    return unpacked


async def read_form_body(request: Request) -> bytes:
    """Read the whole body of a form. Raises RequestError if it is larger than LARGEST_FORM."""
    try:
        return await request.bodies.read(request, LARGEST_FORM)
    except BodyTooLarge:
        raise RequestError(_TOO_LARGE) from None


def check_values(body: bytes, most: int) -> None:
    """Raise TooManyValues if JSON has more values than `most`, without decoding it: 3 bytes become an object of 72."""
    if len(body) <= _FEW_CONTAINERS:
        return
    containers = most // _CONTAINER
    count = _CONTAINER * (_occurrences(body, b"{", containers) + _occurrences(body, b"[", containers))
    if len(body) > _FEW_VALUES:
        count += _occurrences(body, b",", most)
    if count > most and _values(body, most) > most:
        raise TooManyValues(most)


def _occurrences(body: bytes, character: bytes, most: int) -> int:
    """Count a character that mostly is rare: `find` takes a tenth of the time of `count` then."""
    number, at = 0, body.find(character)
    while at >= 0 and number <= most:
        number += 1
        at = body.find(character, at + 1)
    return number


def _values(body: bytes, most: int) -> int:
    """Count the values outside of strings, and the strings and their escaped quotes; stop beyond `most`."""
    number, at, is_inside = 0, 0, False
    while number <= most:
        quote = body.find(b'"', at)
        end = len(body) if quote < 0 else quote
        if not is_inside:
            number += body.count(b",", at, end)
            number += _CONTAINER * (body.count(b"{", at, end) + body.count(b"[", at, end))
        if quote < 0:
            return number
        number += 1
        is_inside = not is_inside or _is_escaped(body, at, quote)
        at = quote + 1
    return number


def _is_escaped(body: bytes, start: int, quote: int) -> bool:
    """Return whether an odd number of backslashes stands before a quote."""
    before = body[start:quote]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


async def model_of_form(request: Request, body: bytes) -> str:
    """Return the field `model` of a multipart form, "" if absent. Raises RequestError for other bodies."""
    if not request.headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data"):
        raise RequestError("request Content-Type isn't multipart/form-data")
    parser = MultiPartParser(Headers(raw=list(request.headers.items())), _at_once(body))
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise RequestError(f"cannot read the form: {error}") from None
    model = form.get("model")
    await form.close()
    return model if isinstance(model, str) else ""


async def _at_once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
