"""The process that has imported vLLM: it forks servers, each with spare workers that need no import any more.

For each request it forks a monitor, the monitor forks the server, and the server forks its spares before it executes
`vllama serve`. So the spares are children of the gateway, as every worker is, and die with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress

from setproctitle import setproctitle

from engine.prepared.request import IDLE_TITLE, MAXIMUM_MESSAGE_BYTES, SPARES_VARIABLE, ServerRequest
from vllama.worker import launch, spare, tracker


def main() -> None:
    """Import vLLM, then serve the requests of an inherited socket until its other end closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    setproctitle("host of test servers")  # before the environment changes: its memory is where longer titles go
    spare.import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the monitors
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAXIMUM_MESSAGE_BYTES, 2)
        if not message:
            os._exit(0)  # at a normal exit libraries print messages about leaks
        if os.fork() == 0:
            control.close()
            _monitor(ServerRequest(**json.loads(message)), *descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)


def _monitor(request: ServerRequest, log: int, status: int) -> None:
    """Start the server, and write its process id and later its exit status, a line each."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server = os.fork()
    if server == 0:
        os.close(status)
        _become_server(request, log)
        return
    os.close(log)
    os.write(status, f"{server}\n".encode())
    _, ended = os.waitpid(server, 0)
    with suppress(BrokenPipeError):
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    os._exit(0)


def _become_server(request: ServerRequest, log: int) -> None:
    """Fork the spares, then execute the server; returns only in a spare that has done its work."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request.environment)
    spares: list[tuple[int, int]] = []
    for _ in range(request.spares):
        order, hand_over = os.pipe()
        pid = os.fork()
        if pid == 0:
            for _, other in spares:
                os.close(other)
            os.close(hand_over)
            _become_spare(order, nothing)
            return
        os.close(order)
        os.set_inheritable(hand_over, True)
        spares.append((pid, hand_over))
    environment = {**request.environment, SPARES_VARIABLE: json.dumps(spares)}
    os.execve(request.command[0], list(request.command), environment)


def _become_spare(order: int, nothing: int) -> None:
    """Wait for the order of a worker, and do it."""
    os.setsid()
    for source, target in ((order, 0), (nothing, 1), (nothing, 2)):
        os.dup2(source, target)
    os.closerange(3, max(order, nothing) + 1)
    setproctitle(IDLE_TITLE)
    arguments = spare.wait_for_order()
    if arguments is not None:
        tracker.start()
        launch.main(list(arguments))
