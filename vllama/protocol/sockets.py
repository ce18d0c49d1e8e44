"""Names of a worker's channel sockets: the API server processes create them, the gateway finds them."""

from __future__ import annotations

from pathlib import Path


def channel_socket(http_socket: Path, rank: int, count: int) -> Path:
    """Return the channel socket of API server process `rank` of `count`; they all share the HTTP socket."""
    return Path(f"{http_socket}.{rank}of{count}")


def find_channel_sockets(http_socket: Path) -> tuple[Path, ...]:
    """Return the channel sockets of a worker, by rank, or none until each of its API server processes has its own."""
    found = list(http_socket.parent.glob(f"{http_socket.name}.*of*"))
    if not found:
        return ()
    count = int(found[0].name.rpartition("of")[2])
    sockets = tuple(channel_socket(http_socket, rank, count) for rank in range(count))
    return sockets if set(sockets) == set(found) else ()
