"""Streams records as fast as it can, for nothing: what limits it is what a chunk costs to send.

    python tests/trivial_server.py RECORDS TICK_SECONDS

Every stream gets a record each tick, in a write of its own. The port goes to stdout; the end of stdin ends it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

RECORD = (
    b'{"model":"m","created_at":"2026-11-21T00:00:00Z","message":{"role":"assistant","content":" word"},"done":false}\n'
)
LAST = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"eval_count":%d}\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Stream(asyncio.Protocol):
    def __init__(self, left: dict[Stream, int], records: int) -> None:
        self.left = left
        self.records = records

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"}"):  # the end of a request's body
            self.transport.write(HEAD)
            self.left[self] = self.records

    def connection_lost(self, error: Exception | None) -> None:
        self.left.pop(self, None)


async def serve(records: int, tick: float) -> None:
    left: dict[Stream, int] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stream(left, records), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    over = loop.run_in_executor(None, sys.stdin.read)
    record, end = chunk(RECORD), chunk(LAST % records) + b"0\r\n\r\n"
    while not over.done():
        due = loop.time() + tick
        for stream in list(left):
            stream.transport.write(record)
            left[stream] -= 1
            if not left[stream]:
                stream.transport.write(end)
                del left[stream]
        await asyncio.sleep(max(0.0, due - loop.time()))


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2])))
