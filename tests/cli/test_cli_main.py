from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from vllama import __version__, errors
from vllama.cli.list import command as list_command
from vllama.cli.main import ALIASES, COMMANDS, exit_code, main

from .conftest import Vllama
from .scripted_server import NO_MODELS, TAGS, ScriptedServer, body


def test_help_names_every_command_and_every_exit_code(vllama: Vllama) -> None:
    result = vllama("--help")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.split("Commands:")[1].split("\n\n")[0].splitlines() if line]
    assert listed == list(COMMANDS)
    for code in ("0 ", "1 ", "2 ", "3 ", "130 "):
        assert f"\n    {code}" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_an_example(vllama: Vllama, name: str) -> None:
    result = vllama(name, "--help")
    assert result.exit_code == 0
    assert f"\n    vllama {name}" in result.stdout.split("Example")[1]


def test_ls_is_another_name_of_list() -> None:
    context = click.Context(main)
    assert main.get_command(context, "ls") is list_command
    assert all(command in COMMANDS for command in ALIASES.values())


def test_version_says_which_ollama_it_speaks_like(vllama: Vllama) -> None:
    result = vllama("--version")
    assert result.stdout == f"vllama {__version__} (Ollama API 0.35.0)\n"


@pytest.mark.parametrize("arguments", [["lst"], ["show"], ["list", "--jsn"], ["run", "m", "--format=perhaps", "hello"]])
def test_wrong_usage_ends_with_2_and_reaches_no_server(
    vllama: Vllama, server: ScriptedServer, arguments: list[str]
) -> None:
    result = vllama(*arguments)
    assert result.exit_code == 2
    assert "Usage: vllama" in result.stderr
    assert server.requests == []


@pytest.mark.parametrize("arguments", [["list"], ["ps"], ["show", "m"], ["stop", "m"], ["run", "m", "hello"]])
def test_a_missing_server_ends_with_3_and_says_how_to_start_one(
    vllama: Vllama, no_server: str, arguments: list[str]
) -> None:
    result = vllama(*arguments)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: could not connect to {no_server} (connection refused); "
        "is the server running? Start it with `vllama serve`\n"
    )


def test_an_error_of_the_server_ends_with_1_and_its_message(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("GET", "/api/tags", body(b'{"error":"the disk is on fire"}', 500))
    result = vllama("list")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: the disk is on fire\n")


def test_ctrl_c_ends_with_130(vllama: Vllama, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(prefix: str, as_json: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(list_command, "callback", interrupt)
    result = vllama("list")
    assert (result.exit_code, result.output) == (130, "\n")


def test_a_file_that_cannot_be_used_is_a_message_and_no_traceback(
    vllama: Vllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(prefix: str, as_json: bool) -> None:
        raise PermissionError(13, "Permission denied", "/models")

    monkeypatch.setattr(list_command, "callback", deny)
    result = vllama("list")
    assert (result.exit_code, result.stderr) == (1, "Error: [Errno 13] Permission denied: '/models'\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ServerUnreachable("x"), 3),
        (errors.ServerRefused(404, "x"), 1),
        (errors.ServerError("x"), 1),
        (errors.InvalidName(), 2),
        (errors.BadEngineFlags("x"), 2),
        (errors.LoadFailed("x"), 1),
        (errors.StoreError("x"), 1),
        (errors.ModelNotFound("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: errors.VllamaError, code: int) -> None:
    assert exit_code(error) == code


def test_python_m_vllama_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "vllama", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"vllama {__version__} ")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["list"], ["ps"]])
def test_a_command_imports_neither_an_engine_nor_a_slow_http_client(
    server: ScriptedServer, arguments: list[str]
) -> None:
    server.on("GET", "/api/tags", body(TAGS))
    server.on("GET", "/api/ps?all=true", body(NO_MODELS))
    program = (
        "import contextlib, io, json, sys\n"
        "from vllama.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(sys.argv[1:], standalone_mode=False)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "click" in loaded
    slow = {"vllm", "torch", "transformers", "httpx", "aiohttp", "orjson", "starlette", "uvicorn", "uvloop", "asyncio"}
    assert loaded & slow == set()
