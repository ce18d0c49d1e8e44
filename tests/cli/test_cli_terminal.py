"""The command as a process of its own: signals, pipes, and a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from .scripted_server import GENERATED, GENERATED_TEXT, PATIENCE, Handler, ScriptedServer, body, chat_pieces, stream

# Makes the terminal given by name its own, then becomes the command.
ON_TERMINAL = (
    "import os, sys\n"
    "terminal = os.open(sys.argv[1], os.O_RDWR)\n"
    "for descriptor in (0, 1, 2):\n"
    "    os.dup2(terminal, descriptor)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'vllama', *sys.argv[2:]])\n"
)


class Terminal:
    """The other side of a terminal that a command runs on."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self.process = process
        self.seen = ""

    def expect(self, text: str) -> str:
        """Read until the text comes; return what came with it."""
        while text not in self.seen:
            ready, _, _ = select.select([self._descriptor], [], [], PATIENCE)
            assert ready, f"waited for {text!r}, saw {self.seen!r}"
            self.seen += os.read(self._descriptor, 4096).decode()
        before, self.seen = self.seen.split(text, 1)
        return before + text

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())


@contextmanager
def on_terminal(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ON_TERMINAL, os.ttyname(theirs), *arguments]
    environment = os.environ | {"TERM": "dumb", "INPUTRC": os.devnull}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            yield Terminal(ours, process)
        finally:
            process.kill()
            os.close(theirs)
            os.close(ours)


def test_each_piece_is_shown_before_the_next_is_made(server: ScriptedServer) -> None:
    shown = Event()

    def wait_until_shown(_: Handler) -> None:
        assert shown.wait(PATIENCE)

    server.on("POST", "/api/generate", stream(GENERATED[0], wait_until_shown, *GENERATED[1:]))
    command = [sys.executable, "-m", "vllama", "run", "smollm2:135m", "hello"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == b"The"
        shown.set()
        assert process.stdout.read() == GENERATED_TEXT.removeprefix("The").encode() + b"\n\n"
    assert process.returncode == 0


def test_ctrl_c_in_a_single_answer_ends_with_130_and_leaves_the_server(server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", stream(GENERATED[0], Handler.wait_for_client_to_leave))
    command = [sys.executable, "-m", "vllama", "run", "smollm2:135m", "hello"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(3) == b"The"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b"\n"
    assert server.client_left.wait(PATIENCE)


def test_a_reader_that_leaves_early_is_no_error_message(server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", stream(*GENERATED))
    command = [sys.executable, "-m", "vllama", "run", "smollm2:135m", "hello"]
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writing)
        _, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    assert process.returncode == 1


def test_a_chat_on_a_terminal(server: ScriptedServer, tmp_path: Path) -> None:
    server.on(
        "POST",
        "/api/chat",
        stream(*chat_pieces("Hi", " there")),
        stream(chat_pieces("Endless")[0], Handler.wait_for_client_to_leave),
    )
    with on_terminal("run", "smollm2:135m", "--keepalive", "5m") as terminal:
        terminal.expect(">>> ")
        assert server.bodies("/api/generate") == [{"model": "smollm2:135m", "keep_alive": 300, "stream": False}]
        terminal.type("hello\n")
        terminal.expect("Hi there")
        terminal.expect(">>> ")
        terminal.type("again\n")
        terminal.expect("Endless")
        terminal.type("\x03")
        terminal.expect(">>> ")
        assert server.client_left.wait(PATIENCE)
        terminal.type("\x04")
        assert terminal.process.wait(PATIENCE) == 0
    history = tmp_path / ".vllama" / "history"
    assert history.read_text().splitlines() == ["hello", "again"]
    assert history.stat().st_mode & 0o777 == 0o600


def test_a_terminal_remembers_the_last_session(server: ScriptedServer, tmp_path: Path) -> None:
    history = tmp_path / ".vllama" / "history"
    history.parent.mkdir()
    history.write_text("/? set\n")
    with on_terminal("run", "smollm2:135m") as terminal:
        terminal.expect(">>> ")
        terminal.type("\x10\n")  # Ctrl-P: the line before
        terminal.expect("/set parameter <name> <value>")
        terminal.expect(">>> ")
        terminal.type("/bye\n")
        assert terminal.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(("variable", "lines"), [("1", []), ("0", ["/bye"]), ("", ["/bye"])])
def test_the_environment_can_forbid_the_history(
    *, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, lines: list[str]
) -> None:
    monkeypatch.setenv("OLLAMA_NOHISTORY", variable)
    with on_terminal("run", "smollm2:135m") as terminal:
        terminal.expect(">>> ")
        terminal.type("/bye\n")
        assert terminal.process.wait(PATIENCE) == 0
    assert (tmp_path / ".vllama" / "history").read_text().splitlines() == lines


def test_json_needs_a_prompt_on_a_terminal(server: ScriptedServer) -> None:
    with on_terminal("run", "smollm2:135m", "--json") as terminal:
        terminal.expect("--json needs a prompt")
        assert terminal.process.wait(PATIENCE) == 2
    assert server.requests == []


@pytest.mark.parametrize("no_color", [False, True])
def test_thinking_is_grey_on_a_terminal_that_may_have_colours(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    thinking = b'{"response":"","thinking":"Hm","done":false}\n'
    server.on("POST", "/api/generate", stream(thinking, *GENERATED))
    with on_terminal("run", "smollm2:135m", "hello") as terminal:
        shown = terminal.expect(GENERATED_TEXT)
        assert terminal.process.wait(PATIENCE) == 0
    assert "Hm" in shown
    assert ("\x1b[38;5;245m" in shown) is not no_color


def test_pull_draws_bars_on_a_terminal(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    header = b'{"weight":{"dtype":"U8","shape":[1000],"data_offsets":[0,1000]}}'
    (snapshot / "config.json").write_text('{"model_type":"llama","architectures":["LlamaForCausalLM"]}')
    (snapshot / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1000))
    (snapshot / "tokenizer.json").write_text("{}")
    with on_terminal("pull", "mine", "--from", str(snapshot)) as terminal:
        shown = terminal.expect("success")
        assert terminal.process.wait(PATIENCE) == 0
    assert "100% ▕█" in shown


def test_a_load_that_takes_long_is_shown_with_its_phase(server: ScriptedServer) -> None:
    may_answer = Event()

    def wait_until_told(_: Handler) -> None:
        assert may_answer.wait(PATIENCE)

    loading = {"name": "smollm2:135m", "load": {"phase": "weights", "percent": 40, "line": "..."}}
    other = {"name": "other", "load": {"phase": "graphs", "percent": None, "line": "..."}}
    server.on("GET", "/api/ps", body(json.dumps({"models": [other, loading]}).encode()))
    server.on("POST", "/api/generate", stream(wait_until_told, *GENERATED))
    with on_terminal("run", "smollm2:135m", "Why?") as terminal:
        terminal.expect("loading smollm2:135m: weights 40% ")
        may_answer.set()
        terminal.expect(GENERATED_TEXT)
