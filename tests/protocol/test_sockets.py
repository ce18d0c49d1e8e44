"""Where the channels of a worker are, as the worker names them and as the gateway finds them."""

from __future__ import annotations

from pathlib import Path

from vllama.protocol.sockets import channel_socket, find_channel_sockets


def test_each_api_server_process_has_a_socket_of_its_own() -> None:
    names = [str(channel_socket(Path("/run/w.sock"), rank, 2)) for rank in range(2)]
    assert names == ["/run/w.sock.0of2", "/run/w.sock.1of2"]


def test_sockets_are_found_once_every_process_has_its_own_and_in_the_order_of_ranks(tmp_path: Path) -> None:
    http_socket = tmp_path / "w.sock"
    other = channel_socket(tmp_path / "w2.sock", 0, 1)
    other.touch()
    sockets = tuple(channel_socket(http_socket, rank, 12) for rank in range(12))
    for socket in sockets:
        assert find_channel_sockets(http_socket) == ()
        socket.touch()
    assert find_channel_sockets(http_socket) == sockets
