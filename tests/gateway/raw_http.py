"""A client that sees every byte: for framing, for slow reading, and for leaving without a word."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from fake_worker import within


@dataclass(frozen=True)
class Head:
    """Status line and headers; names in lower case, several values of one name in their order."""

    status: int
    headers: tuple[tuple[str, str], ...]
    version: str = "HTTP/1.1"

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value


def request_bytes(
    method: str, path: str, body: bytes = b"", *headers: tuple[str, str], version: str = "HTTP/1.1"
) -> bytes:
    """Return a request with a Host and a Content-Length."""
    lines = [f"{method} {path} {version}", "Host: localhost", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class RawConnection:
    """One TCP connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int, *, buffer: int | None = None) -> RawConnection:
        """Connect; with `buffer`, take in only about so many bytes before they are read."""
        connected = socket.socket()
        connected.setblocking(False)
        if buffer is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            await within(asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", port)))
        except BaseException:
            connected.close()
            raise
        return cls(*await within(asyncio.open_connection(sock=connected, limit=buffer or 2**20)))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def request(
        self, method: str, path: str, body: bytes = b"", *headers: tuple[str, str], version: str = "HTTP/1.1"
    ) -> None:
        """Send a request, with a Host and a Content-Length."""
        self.send(request_bytes(method, path, body, *headers, version=version))

    async def head(self) -> Head:
        """The next reply's head."""
        status, *lines = (await within(self._reader.readuntil(b"\r\n\r\n"))).decode().split("\r\n")[:-2]
        pairs = (line.partition(": ")[::2] for line in lines)
        version, code = status.split()[:2]
        return Head(int(code), tuple((name.lower(), value) for name, value in pairs), version)

    async def exactly(self, size: int) -> bytes:
        """So many bytes of the body."""
        return await within(self._reader.readexactly(size))

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; b"" is its end."""
        size = int(await within(self._reader.readuntil(b"\r\n")), 16)
        return (await self.exactly(size + 2))[:-2]

    async def chunks(self) -> bytes:
        """All the chunks that are left, up to the end of a chunked body."""
        parts = []
        while part := await self.chunk():
            parts.append(part)
        return b"".join(parts)

    async def rest(self) -> bytes:
        """All up to the end of the connection."""
        return await within(self._reader.read())

    def close(self) -> None:
        """Leave without a word."""
        self._writer.transport.abort()
