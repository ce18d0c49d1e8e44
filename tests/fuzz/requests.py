"""Whole requests as bytes: bodies of `values`, and what else a client can get wrong, as hypothesis strategies."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from odd_json import text_of

from fuzz.routes import Route
from fuzz.values import HINTS, VALUES, Fields, Names, mutated

Headers = list[tuple[str, str]]

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PROPFIND", "post", "X")

_HEADERS = (
    ("Content-Type", "text/plain; charset=latin-1"),
    ("Content-Type", "multipart/form-data; boundary=x"),
    ("Content-Type", ";;;"),
    ("Content-Type", "application/json; charset=utf-16"),
    ("Content-Encoding", "gzip"),
    ("Content-Encoding", "zstd"),
    ("Content-Encoding", "identity"),
    ("Content-Encoding", "br, gzip"),
    ("Accept", "text/event-stream"),
    ("Accept", "x" * 2000),
    ("Accept-Encoding", "gzip, br, zstd"),
    ("Authorization", "Bearer x"),
    ("X-Api-Key", "\xe9"),
    ("Cookie", "a=b; " * 100),
    ("Origin", "http://localhost:3000"),
    ("Origin", "http://evil.example"),
    ("Origin", "null"),
    ("Host", "evil.example"),
    ("Host", "a b"),
    ("Host", ""),
    ("Expect", "100-continue"),
    ("Expect", "200-ok"),
    ("Upgrade", "h2c"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Connection", "close"),
    ("Connection", "x, \x09keep-alive,,"),
    ("Range", "bytes=0-1"),
    ("If-None-Match", "*"),
    ("X-Forwarded-For", "127.0.0.1, \x7f"),
    ("X-Vllama-Model", "{}"),
    ("Traceparent", "00-x-y-z"),
    ("X-Request-Id", "a" * 3000),
    ("Prefer", ""),
)
_QUERIES = ("?", "?a=%00", "?%ff=%fe&&", "?" + "a=b&" * 500, "?model=x", "?\xe9", "#x", "?a?b#c", "?stream=false;x")
_SUFFIXES = (
    "/",
    "//",
    "/.",
    "/..",
    "/%2e%2e/%2e%2e/etc/passwd",
    "%00",
    "%0d%0aX:1",
    "/a/b",
    ".json",
    "%",
    "/" + "x" * 3000,
)
_PARAMETERS = (
    "sha256:" + "0" * 64, "sha256-" + "a" * 64, "x", "../../x", "%2e%2e%2fx", "%00", "%0d%0a", "tiny", "tiny:latest",
    "%ff%fe", "a/b", "~", "sha256:", "\xe9", "x" * 500,
)  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """A request as it goes over the wire.

    `is_whole` says that a reply is due: the request is complete and its end is clear. Otherwise the client ends its
    side of the connection after the last byte. `is_reusable` says that another request may follow on the connection.
    """

    route: Route
    method: str
    data: bytes
    is_whole: bool = True
    is_reusable: bool = True
    pieces: int = 1


@st.composite
def bodies(draw: st.DrawFn, route: Route, names: Names) -> bytes:
    """A body: mostly JSON of the route with up to three changes, sometimes other bytes."""
    if not route.media_type:
        return draw(st.sampled_from([b"", b"", b"", b"{}", b"x", b"\x00" * 100]))
    if route.media_type == "multipart/form-data":
        return draw(_forms())
    if "json" not in route.media_type:
        return draw(st.binary(max_size=100))
    fields = Fields(route.definitions, names.for_route(route))
    body = _valid(draw, route, fields)
    properties = fields.resolved(draw, route.schema).get("properties", {})
    known = sorted(set(properties) | (set() if properties else set(HINTS))) or sorted(HINTS)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        if isinstance(body, dict):
            body = mutated(draw, body, known)
    return _encoded(draw, text_of(body))


def _valid(draw: st.DrawFn, route: Route, fields: Fields) -> Any:
    properties = fields.resolved(draw, route.schema)
    if draw(st.booleans()) and route.examples:
        example = draw(st.sampled_from(route.examples))
        known = [
            name for name in example if name in HINTS or name in {"model", "name", "from", "source", "destination"}
        ]
        return {**example, **{name: fields.field(draw, name, {}) for name in known}}
    drawn = fields.draw(draw, properties)
    body = drawn if isinstance(drawn, dict) else {}
    if not properties.get("properties"):  # not described: any fields that some route has
        body |= {
            name: fields.field(draw, name, {}) for name in draw(st.lists(st.sampled_from(sorted(HINTS)), max_size=5))
        }
    bounded = {
        name: value for name, value in _SHORT.items() if not properties or name in properties.get("properties", {})
    }
    return {"model": draw(fields.names), **bounded, **body}


_SHORT = {"max_tokens": 2, "max_output_tokens": 16, "options": {"num_predict": 2}}
"""Fields without which a model would write until its context is full."""


@st.composite
def _forms(draw: st.DrawFn) -> bytes:
    names = ("model", "file", "language", "prompt", "response_format", "stream", "temperature", "x")
    parts = b""
    for name in draw(st.lists(st.sampled_from(names), max_size=4)):
        file = '; filename="a.wav"' if name == "file" else draw(st.sampled_from(["", '; filename="../x"', "; ;"]))
        value = draw(st.sampled_from([b"tiny", b"RIFF\x24\x00\x00\x00WAVEfmt ", b""]) | st.binary(max_size=30))
        parts += f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"
    end = draw(st.sampled_from([b"--x--\r\n"] * 4 + [b"", b"--x", b"--y--\r\n"]))
    return parts + end


def _encoded(draw: st.DrawFn, text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    kind = draw(st.integers(0, 19))
    if kind == 15:
        return data[: draw(st.integers(0, len(data)))]
    if kind == 16:
        return data + draw(st.sampled_from([b"}", b"{}", b"\x00", b" \n", b"x", b"//"]) | st.binary(max_size=5))
    if kind == 17:
        place = draw(st.integers(0, len(data)))
        return data[:place] + draw(st.binary(min_size=1, max_size=4)) + data[place:]
    if kind == 18:
        return text.encode(draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32", "utf-7"])), "replace")
    if kind == 19:
        return draw(st.binary(max_size=60) | VALUES.map(text_of).map(lambda odd: odd.encode("utf-8", "surrogatepass")))
    return data


def head(method: str, target: str, headers: Sequence[tuple[str, str]], version: str = "HTTP/1.1") -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace")


@st.composite
def requests(draw: st.DrawFn, route: Route, names: Names) -> Sent:
    """A request for a route."""
    body = draw(bodies(route, names))
    target = route.with_path(draw(st.sampled_from([*names.victims, *_PARAMETERS])) if "{" in route.path else "")
    headers: Headers = [("Host", "localhost")]
    if route.media_type:
        boundary = "; boundary=x" if route.media_type.startswith("multipart/") else ""
        headers.append(("Content-Type", route.media_type + boundary))
    kind = draw(
        st.sampled_from(["plain"] * 14 + ["headers", "target", "method", "chunked", "framing", "cut", "raw", "twice"])
    )
    plain = _with_length(headers, body)
    if kind == "method":
        method = draw(st.sampled_from(METHODS))
        return Sent(route, method, head(method, target, plain) + body, is_reusable=False, is_whole=method != "CONNECT")
    if kind == "target":
        odd = draw(st.sampled_from([*(target + query for query in _QUERIES), *_odd_paths(target)]))
        return Sent(
            route, route.method, head(route.method, odd, plain) + body, is_whole=_is_target(odd), is_reusable=False
        )
    if kind == "headers":
        return _with_odd_headers(draw, route, target, headers, body)
    if kind == "chunked":
        return _chunked(draw, route, target, headers, body)
    if kind == "framing":
        return _framed(draw, route, target, headers, body)
    whole = head(route.method, target, plain) + body
    if kind == "cut":
        return Sent(
            route, route.method, whole[: draw(st.integers(0, len(whole) - 1))], is_whole=False, is_reusable=False
        )
    if kind == "raw":
        place = draw(st.integers(0, len(whole)))
        odd_bytes = draw(
            st.binary(max_size=200) | st.sampled_from([b"\r\n\r\n", b"\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
        )
        data = whole[:place] + odd_bytes + whole[place:] if draw(st.booleans()) else odd_bytes
        return Sent(route, "", data, is_whole=False, is_reusable=False)
    if kind == "twice":
        return Sent(route, route.method, whole * 2, is_reusable=False)
    return Sent(route, route.method, whole, pieces=draw(st.sampled_from([1, 1, 1, 2, 7])))


def _with_length(headers: Headers, body: bytes) -> Headers:
    return [*headers, ("Content-Length", str(len(body)))]


def _odd_paths(target: str) -> list[str]:
    return [
        *(target + suffix for suffix in _SUFFIXES),
        target.upper(), "/" + target, target.replace("/", "//"), target.replace("a", "%61"), "/x/.." + target, "*",
        "http://localhost" + target, "http://evil.example" + target, "//evil.example" + target, "x", target[1:], " ",
        target + " x", target + "\x00", "https://[::1]:0" + target, target + ";x=1", "/" + "é" * 100,
    ]  # fmt: skip


def _is_target(text: str) -> bool:
    """Whether a request line with this target is HTTP, so that a reply is due."""
    return text.startswith("/") and not set(text) & set(" \x00")


def _with_odd_headers(draw: st.DrawFn, route: Route, target: str, headers: Headers, body: bytes) -> Sent:
    chosen = draw(st.lists(st.sampled_from(_HEADERS), min_size=1, max_size=3, unique_by=lambda header: header[0]))
    names = {name for name, _ in chosen}
    if draw(st.integers(0, 9)) == 9:
        chosen = [*chosen, *(("X-Many", str(number)) for number in range(draw(st.sampled_from([100, 300]))))]
    if ("Content-Encoding", "gzip") in chosen:
        body = gzip.compress(body)
    kept = [header for header in headers if header[0] not in names]
    return Sent(
        route, route.method, head(route.method, target, _with_length([*chosen, *kept], body)) + body, is_reusable=False
    )


def _chunked(draw: st.DrawFn, route: Route, target: str, headers: Headers, body: bytes) -> Sent:
    size = draw(st.sampled_from([1, 3, 100, 100_000]))
    size = max(size, len(body) // 500)
    extension = draw(st.sampled_from([b"", b"", b";a=b", b';a="\xff"', b" ", b";" + b"x" * 3000]))
    chunks = b"".join(
        b"%x%b\r\n%b\r\n" % (len(part), extension, part)
        for part in (body[at : at + size] for at in range(0, len(body), size))
    )
    trailers = draw(st.sampled_from([b"", b"", b"X: 1\r\n", b"Content-Length: 5\r\n", b"Host: evil.example\r\n"]))
    end = draw(
        st.sampled_from(
            [b"0\r\n"] * 6 + [b"-1\r\n", b"g\r\n", b"", b"00000000000000000000\r\n", b"fffffffffffffffff\r\n"]
        )
    )
    encoding = draw(
        st.sampled_from(["chunked"] * 5 + ["Chunked", "gzip, chunked", "identity", "chunked, chunked", "x"])
    )
    whole = end == b"0\r\n" and encoding == "chunked" and extension in {b"", b";a=b"}
    reusable = whole and not trailers.startswith(b"Content-Length")  # refused, perhaps after the reply
    data = head(route.method, target, [*headers, ("Transfer-Encoding", encoding)]) + chunks + end + trailers + b"\r\n"
    return Sent(route, route.method, data, is_whole=whole, is_reusable=reusable, pieces=draw(st.sampled_from([1, 5])))


def _framed(draw: st.DrawFn, route: Route, target: str, headers: Headers, body: bytes) -> Sent:
    """A request whose lengths or version are wrong."""
    version = draw(
        st.sampled_from(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.10", "x"])
    )
    length = str(len(body))
    lengths = draw(
        st.sampled_from(
            [[length]] * 4
            + [
                [],
                [length, length],
                [length, "0"],
                ["-1"],
                ["+1"],
                ["x"],
                ["9" * 30],
                [f" {length}"],
                [str(len(body) + 5)],
            ]
            + [[str(len(body) // 2)], ["0x10"], ["1_0"], [f"{length}, {length}"]]
        )
    )
    both = draw(st.integers(0, 9)) == 9
    lines = [*headers, *(("Content-Length", value) for value in lengths)]
    lines += [("Transfer-Encoding", "chunked")] if both else []
    if draw(st.integers(0, 9)) == 9:
        lines = [header for header in lines if header[0] != "Host"]
    data = head(route.method, target, lines, version) + body
    if draw(st.integers(0, 9)) == 9:
        data = data.replace(b"\r\n", b"\n")
    whole = lengths == [length] and version in {"HTTP/1.1", "HTTP/1.0"} and not both and b"\r\n" in data
    return Sent(route, route.method, data, is_whole=whole, is_reusable=False)


def described(sent: Sent) -> str:
    """Return the request for a report: latin-1 text of its bytes, so that it can be sent again."""
    return json.dumps(sent.data.decode("latin-1"))[1:-1]
