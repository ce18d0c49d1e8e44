"""Where the ranks of an engine meet, and what can connect to a single rank.

vLLM 0.32 is installed here. 0.32 and 0.33 let ranks meet in a file, 0.26 at a TCP port, which stays as it is.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vllama.worker.rank_groups import listening, memory_store, refuse_connections

TWO_RANKS_MEET = """
import os, sys
from torch.distributed import FileStore
from vllama.worker.rank_groups import memory_store

path = memory_store().removeprefix("file://")
if child := os.fork():
    FileStore(path, 2).set("from", "the parent")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(FileStore(path, 2).get("from") != b"the parent")
"""
ONE_RANK_COMPUTES = """
import os, socket, torch
from vllm.distributed import parallel_state
from vllama.worker.general_plugin import register
register()
from vllm.v1.executor.uniproc_executor import get_file_store_init_method
from vllm.config import VllmConfig, set_current_vllm_config
from vllama.worker.rank_groups import listening

with socket.create_server(("127.0.0.1", 0)) as other, set_current_vllm_config(VllmConfig()):
    parallel_state.init_distributed_environment(1, 0, get_file_store_init_method(), 0, "gloo")
    parallel_state.ensure_model_parallel_initialized(1, 1)
    numbers = torch.ones(3)
    torch.distributed.all_reduce(numbers, group=parallel_state.get_world_group().cpu_group)
    assert numbers.tolist() == [1, 1, 1]
    gloos = listening() - {other.fileno()}
    assert gloos
    for descriptor in gloos:
        with socket.socket() as client:
            client.settimeout(0.05)
            client.connect_ex(socket.socket(fileno=os.dup(descriptor)).getsockname())
            try:
                client.getpeername()
            except OSError:
                continue
            raise AssertionError("a stranger is connected")
    socket.create_connection(other.getsockname()).close()
"""


def run(program: str, folder: Path) -> None:
    environment = {"VLLM_PLUGINS": "vllama", "GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.vllm
def test_ranks_meet_in_memory_and_leave_no_file(tmp_path: Path) -> None:
    run(TWO_RANKS_MEET, tmp_path)

    assert list(tmp_path.glob("vllm_dist_*")) == []


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_no_client_can_connect_to_the_groups_of_a_single_rank(tmp_path: Path) -> None:
    run(ONE_RANK_COMPUTES, tmp_path)

    assert list(tmp_path.glob("vllm_dist_*")) == []


def test_each_engine_meets_in_a_file_of_its_own() -> None:
    first, second = memory_store(), memory_store()

    assert first != second
    for store in (first, second):
        os.close(int(store.rpartition("/")[2]))


def test_a_socket_that_refuses_connections_still_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        refuse_connections(server.fileno())
        client.setblocking(False)
        client.connect_ex(server.getsockname())

        assert server.fileno() in listening()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
