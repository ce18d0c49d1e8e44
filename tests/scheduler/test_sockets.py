from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vllama.scheduler.sockets import remove_dead_sockets


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, because the path of a socket has to be."""
    with tempfile.TemporaryDirectory(prefix="vllama ") as directory:
        yield Path(directory)


def bound(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    return made


def test_what_a_process_left_behind_goes_and_what_is_in_use_stays(directory: Path) -> None:
    with closing(bound(directory / "1.sock.0of1")) as living:
        living.listen()
        bound(directory / "3e1f0f1c-7a4e-4ad1-9f8b-6f2b8f3e2d11").close()
        (directory / "file").touch()
        remove_dead_sockets(directory)
        assert sorted(path.name for path in directory.iterdir()) == ["1.sock.0of1", "file"]
