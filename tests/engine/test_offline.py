"""A machine without a network: models come as a bundle, and nobody is asked for anything."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.processes import wait_for
from engine.server import Server, environment
from vllama.store.model_store import ModelStore

pytestmark = pytest.mark.engine

MODEL, QUESTION, ANSWER = "smollm2:135m", "What is the capital of France?", "Paris"

NO_ROUTE = ["unshare", "--map-root-user", "--net"]
"""A command behind this has a network with nothing but loopback in it, which is down."""

_CONVERSATION = Path(__file__).with_name("offline_conversation.py")


@pytest.fixture(scope="module")
def carried(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store to which the model came as a bundle, which is gone."""
    directory = tmp_path_factory.mktemp("carried")
    _vllama(store.root, "stage", MODEL, "--to", str(directory / "bundle"))
    _vllama(directory / "models", "load", str(directory / "bundle"))
    shutil.rmtree(directory / "bundle")
    _vllama(directory / "models", "verify", MODEL)
    return directory / "models"


def _vllama(models: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "vllama", *arguments]
    subprocess.run(command, check=True, capture_output=True, env=environment(models, "offline"))


def test_a_carried_model_answers_where_there_is_no_route(carried: Path) -> None:
    if not shutil.which(NO_ROUTE[0]):
        pytest.skip("unshare, of util-linux, is not installed")
    probe = subprocess.run([*NO_ROUTE, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no network namespace can be made here: {probe.stderr.strip()}")
    found = subprocess.run(
        [*NO_ROUTE, sys.executable, _CONVERSATION, carried, MODEL, QUESTION],
        capture_output=True,
        text=True,
        check=False,
        env=environment(carried, "offline", {"PYTHONPATH": ":".join(sys.path)}),
    )
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert said["interfaces"] == ["lo"]
    assert said["refusal"] == "Network is unreachable"
    assert ANSWER in said["reply"]["message"]["content"]
    assert said["reply"]["done"] is True


def test_from_start_to_stop_nothing_but_this_machine_is_asked(carried: Path, tmp_path: Path) -> None:
    record = Recorder(tmp_path / "calls")
    with socket.create_server(("127.0.0.1", 0)) as there:
        subprocess.run([*record.command, sys.executable, "-c", _CALLS, str(there.getsockname()[1])], check=True)
    record.wait()
    anywhere, abroad, question = record.outward()
    assert (anywhere, abroad) == ("0.0.0.0 port 0", "192.0.2.1 port 9")
    assert "nowhere" in question

    record = Recorder(tmp_path / "served")
    server = Server(carried, "--model", MODEL, under=record.command)
    try:
        body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "options": {"temperature": 0}}
        assert ANSWER in server.ask("/api/chat", body)["message"]["content"]
        worker = server.worker(MODEL).main
        engine = server.engines()
        assert engine
        server.terminate()
        assert server.wait() == 0
    finally:
        server.close()
    record.wait()
    assert {server.process.pid, worker.pid, *(process.pid for process in engine)} <= record.processes()
    assert record.outward() == []


_CALLS = r"""
import contextlib, socket, sys
socket.create_connection(("127.0.0.1", int(sys.argv[1])))
socket.create_server(("", 0))
with contextlib.suppress(OSError):  # no route: that it was tried counts
    socket.socket(type=socket.SOCK_DGRAM).connect(("192.0.2.1", 9))
resolver = socket.socket(type=socket.SOCK_DGRAM)
resolver.connect(("127.0.0.1", 53))
resolver.send(b"\0\1\1\0\0\1\0\0\0\0\0\0\7nowhere\7invalid\0\0\1\0\1")
"""
"""Calls one address here, one abroad, and a name server; and may be called from everywhere."""


@dataclass(frozen=True, slots=True)
class Recorder:
    """Has the calls to the kernel with an address in them written down: of a command and of all that it starts."""

    path: Path

    @property
    def command(self) -> list[str]:
        """What to put in front of the command, which stays the child of who starts it (-D)."""
        calls = "trace=connect,bind,sendto,sendmsg,sendmmsg"
        recorded = ["strace", "-D", "-f", "-q", "-s", "64", "-e", "signal=none", "-e", calls, "-o", str(self.path)]
        if not shutil.which("strace"):
            pytest.skip("strace is not installed")
        probe = subprocess.run(["strace", "-q", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
        if probe.returncode:
            pytest.skip(f"strace may not watch processes here: {probe.stderr.strip()}")
        return recorded

    def wait(self) -> None:
        """Return when the last process has ended, and with it the record."""
        wait_for(lambda: not any(str(self.path).encode() in command for command in _commands()), "strace ends")

    def processes(self) -> set[int]:
        """The numbers of all that were watched."""
        return {int(line.split()[0]) for line in self.path.read_text().splitlines()}

    def outward(self) -> list[str]:
        """The addresses, called or taken, that are not loopback's; of name servers, what they were asked."""
        found, name_servers = set(), set()
        for line in self.path.read_text().splitlines():
            process, call = line.split(maxsplit=1)
            socket_ = (process, call.partition("(")[2].partition(",")[0])
            if address := _ADDRESS.search(call):
                port, host = address.groups()
                name_servers.discard(socket_)
                if port == "53":
                    name_servers.add(socket_)
                elif not _is_here(host):
                    found.add(f"{host} port {port}")
            elif call.startswith("send") and socket_ in name_servers and _NAME_OF_LOOPBACK not in call:
                found.add(call)
        return sorted(found)


_ADDRESS = re.compile(r"htons\((\d+)\), [^}]*?inet_(?:addr|pton)\((?:AF_INET6, )?\"([^\"]+)\"")
"""Port and address as strace prints them; Unix and netlink sockets, which do not leave the machine, have neither."""

_NAME_OF_LOOPBACK = r"\0011\0010\0010\003127\7in-addr\4arpa"
"""What PyTorch's log wants to know of a name server; nothing can keep it from asking, and it tells nothing."""


def _is_here(host: str) -> bool:
    address = ipaddress.ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _commands() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()
