from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllama.machine.processes import ProcessTree, command_lines, is_local, listener, ram_of, variables

_SERVER = """
import os, socket
server = socket.create_server(("127.0.0.1", 0))
burnt, tell = os.pipe()
child = os.fork()
if child == 0:
    while sum(os.times()[:2]) < 0.2: pass
    os.write(tell, b"x")
    os.read(0, 1)
    os._exit(0)
os.read(burnt, 1)
print(server.getsockname()[1], child, flush=True)
os.waitpid(child, 0)
print("child has ended", flush=True)
input()
"""


class Served:
    """A server process with one child, which inherits the socket, has used 0.2 s of CPU, and ends when told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, "--api-key", "k1", "--max-tokens=5", "--hf-token=t1", "plain"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "VLLM_API_KEY": "k2", "VLLM_PLUGINS": "vllama", "OLLAMA_HOST": "h"},
        )
        assert self.process.stdout
        self.port, self.child = map(int, self.process.stdout.readline().split())

    def let_child_end(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("x")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "child has ended\n"


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    with served.process:
        yield served
        served.process.kill()


def test_the_listener_is_the_process_that_opened_the_port_and_not_the_child_that_inherited_it(served: Served) -> None:
    assert listener(served.port) == served.process.pid


def test_a_tree_keeps_the_cpu_time_of_a_process_that_has_ended(served: Served) -> None:
    tree = ProcessTree(served.process.pid)
    assert tree.pids == {served.process.pid, served.child}
    before = tree.read()
    assert before.processes == 2
    assert before.rss > 1e6
    assert before.cpu >= 0.2
    served.let_child_end()
    after = tree.read()
    assert after.processes == 1
    assert after.cpu >= before.cpu
    tree.scan()
    assert tree.pids == {served.process.pid}


def test_the_tree_of_a_process_has_its_children() -> None:
    assert os.getpid() in ProcessTree(os.getppid()).pids


def test_the_ram_of_processes_is_the_sum_of_their_parts() -> None:
    assert ram_of({os.getpid()}) > 1_000_000
    assert ram_of({os.getpid(), 4_000_000}) == pytest.approx(ram_of({os.getpid()}), rel=0.1)


def test_nobody_listens_on_a_free_port() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        assert listener(held.getsockname()[1]) is None


def _fake_process(proc: Path, name: str) -> None:
    (proc / "net").mkdir(parents=True)
    (proc / "net" / "tcp").write_text(
        "sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode\n"
        "0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 77 1 0 100 0 0 10 0\n"
        "1: 0100007F:2CAB 0100007F:0016 01 00000000:00000000 00:00000000 00000000 0 0 78 1 0 100 0 0 10 0\n"
    )
    (proc / "40" / "fd").mkdir(parents=True)
    (proc / "40" / "fd" / "3").symlink_to("socket:[77]")
    (proc / "40" / "fd" / "4").symlink_to("socket:[78]")
    (proc / "40" / "comm").write_text(f"{name}\n")
    (proc / "40" / "stat").write_text(f"40 ({name}) S 1" + " 0" * 20)


def test_only_a_listening_socket_makes_a_listener(tmp_path: Path) -> None:
    _fake_process(tmp_path, "ollama")
    assert listener(0x2CAA, tmp_path) == 40
    assert listener(0x2CAB, tmp_path) is None  # a connection


def test_a_process_that_only_forwards_is_not_the_server(tmp_path: Path) -> None:
    _fake_process(tmp_path, "docker-proxy")
    assert listener(0x2CAA, tmp_path) is None


def test_secrets_of_command_lines_and_variables_are_masked(served: Served) -> None:
    [line] = command_lines([served.process.pid])
    assert line[3:] == ["--api-key", "***", "--max-tokens=5", "--hf-token=***", "plain"]
    shown = {"OLLAMA_HOST": "h", "VLLM_API_KEY": "***", "VLLM_PLUGINS": "vllama"}
    assert variables(served.process.pid, ("VLLM_", "OLLAMA_")) == shown


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("192.0.2.1", False), ("", False)]
)
def test_an_address_is_local_if_it_is_this_machines(host: str, local: bool) -> None:
    assert is_local(host) is local
