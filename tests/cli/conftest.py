from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vllama.cli.main import main

from .scripted_server import LOADED, SHOW, ScriptedServer, body, running_server

Vllama = Callable[..., Result]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_KEEP_ALIVE", "OLLAMA_NOHISTORY", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A server that knows one model, at OLLAMA_HOST."""
    with running_server() as script:
        script.on("POST", "/api/show", body(SHOW))
        script.on("POST", "/api/generate", body(LOADED))
        monkeypatch.setenv("OLLAMA_HOST", script.url)
        yield script


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """OLLAMA_HOST names a port that is held, but where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("OLLAMA_HOST", url)
        yield url


@pytest.fixture
def vllama() -> Vllama:
    """Run a command in this process: `vllama("list", "--json", stdin="")`."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(main, list(arguments), input=stdin, prog_name="vllama")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
