"""Process groups of an engine's ranks: they meet in memory instead of a file, and a single rank takes no connections.

vLLM's ranks on one machine meet in a file `vllm_dist_*` in the directory for temporary files, which a killed engine
leaves there. An anonymous file in memory ends with its processes. torch's gloo listens on a TCP port of loopback for
each group, also for a single rank, which has no other to talk to; every local user could connect to it.

Written against vLLM 0.26 to 0.33 (`tests/worker/test_rank_groups.py` names them). Only this file uses these internals:
`get_file_store_init_method`, which 0.26 does not have yet (there, ranks meet at a TCP port, and nothing is changed),
and `initialize_model_parallel` of `vllm.distributed.parallel_state`.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllama.worker.plugin_selection import is_selected

log = logging.getLogger(__name__)

_CALLERS = ("vllm.v1.executor.uniproc_executor", "vllm.v1.executor.multiproc_executor")
"""Modules that import the function by name, if they were imported before this one."""

_LISTENS = "0A"
"""The state of a listening socket in /proc/net/tcp."""

_ATTACH_FILTER = 26
"""SO_ATTACH_FILTER of Linux, which Python's socket module does not name."""

_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
"""A filter of one instruction (`struct sock_filter`): return 0, the number of bytes of a packet to keep."""


class _Listeners:
    """The sockets that listened before the groups were made; None where their ranks do not meet in a file."""

    before: set[int] | None = None


def register() -> None:
    """Change how ranks meet in this process; the second time does nothing."""
    if not is_selected():
        return
    from vllm.distributed import parallel_state
    from vllm.utils import network_utils

    for name in (network_utils.__name__, *_CALLERS):
        module: Any = sys.modules.get(name)
        if hasattr(module, "get_file_store_init_method"):
            module.get_file_store_init_method = memory_store
    make_groups = parallel_state.initialize_model_parallel
    if not hasattr(make_groups, "__wrapped__"):
        parallel_state.initialize_model_parallel = _closing_ports(make_groups)


def memory_store() -> str:
    """Return where the ranks of an engine meet: an anonymous file of this process, which those of its user can open."""
    descriptor = os.memfd_create("vllama-ranks")  # stays open as long as the process
    _Listeners.before = listening()
    return f"file:///proc/{os.getpid()}/fd/{descriptor}"


def _closing_ports(make_groups: Any) -> Any:
    """Return vLLM's last step in making groups, after which no client can connect to those of a single rank."""

    @functools.wraps(make_groups)
    def closing(*arguments: Any, **named: Any) -> Any:
        import torch

        result = make_groups(*arguments, **named)
        if _Listeners.before is not None and torch.distributed.get_world_size() == 1:
            for descriptor in listening() - _Listeners.before:
                try:
                    refuse_connections(descriptor)
                except OSError as error:
                    log.warning("other users of this machine can connect to the engine's port: %s", error)
        return result

    return closing


def listening() -> set[int]:
    """Return the descriptors of this process's listening TCP sockets; none where the system does not tell."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        sockets |= {f"socket:[{fields[9]}]" for fields in map(str.split, lines) if fields[3] == _LISTENS}
    found = set()
    for entry in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # the descriptor of the directory itself has been closed
            if str(entry.readlink()) in sockets:
                found.add(int(entry.name))
    return found


def refuse_connections(descriptor: int) -> None:
    """Have the kernel drop each packet to a listening socket. Its owner, which waits for connections, gets none."""
    instructions = ctypes.create_string_buffer(_DROP_ALL)
    program = struct.pack("HP", 1, ctypes.addressof(instructions))
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)
