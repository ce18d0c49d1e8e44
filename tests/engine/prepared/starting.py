"""Starting servers from the tests: by themselves, or forked from the host, which is started at the first use."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

from engine.prepared.request import HOST_ENVIRONMENT_VARIABLE, ServerRequest, command_of, unconfigured
from vllama.machine.tied import tied
from vllama.protocol.environment import SUPERVISED
from vllama.scheduler import engine_flags

_SPARES = 16
"""For each server; when all are used, workers start as the product starts them."""


class ServerProcess(Protocol):
    """What the tests need of a server's process."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


def start_alone(command: Sequence[str], environment: Mapping[str, str], log: BinaryIO) -> ServerProcess:
    """Start a server as a user does, but have the kernel end it with the tests."""
    return subprocess.Popen(
        tied(*command),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def start_prepared(arguments: Sequence[str], environment: Mapping[str, str], log: BinaryIO) -> ServerProcess:
    """Start `vllama` with these arguments, and with workers that have imported vLLM already."""
    return _host().start(arguments, environment, log)


@cache
def _host() -> _Host:
    return _Host()


class _Host:
    """The process that has imported vLLM; it ends with the tests."""

    def __init__(self) -> None:
        self._environment = _import_environment()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                command_of("engine.prepared.host", str(theirs.fileno())),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._close)

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: BinaryIO) -> ServerProcess:
        status, theirs = os.pipe()
        request = ServerRequest(
            command=command_of("engine.prepared.serving", *arguments),
            environment={**environment, HOST_ENVIRONMENT_VARIABLE: json.dumps(self._environment)},
            spares=_SPARES,
        )
        try:
            socket.send_fds(self._control, [request.encode()], [log.fileno(), theirs])
        finally:
            os.close(theirs)
        return _ForkedServer(status)

    def _close(self) -> None:
        self._control.close()
        self._process.wait(10)


class _ForkedServer:
    """A server whose monitor tells its process id and its exit status through a pipe."""

    def __init__(self, status: int) -> None:
        self._status = os.fdopen(status, "rb", buffering=0)
        self._exit: int | None = None
        first = self._status.readline()
        assert first, "the process that forks servers has ended; its output is above"
        self.pid = int(first)

    def poll(self) -> int | None:
        return self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        found = self._read(timeout)
        if found is None:
            raise subprocess.TimeoutExpired("vllama serve", timeout or 0)
        return found

    def _read(self, timeout: float | None) -> int | None:
        if self._exit is None and select.select([self._status], [], [], timeout)[0]:
            self._exit = int(self._status.readline())
            self._status.close()
        return self._exit

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _import_environment() -> dict[str, str]:
    """The environment of a worker without flags of its own on this machine, which is that of nearly all tests."""
    on_cpu = not engine_flags.has_gpu()
    return {
        **engine_flags.eager_environment([engine_flags.EAGER], on_cpu=on_cpu),
        **engine_flags.environment(unconfigured(), Path("/nowhere"), on_cpu=on_cpu),
        SUPERVISED: "1",
    }
