"""`vllama run`, `list`, `ps`, `show` and `stop` as a user calls them, against a running server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from engine.processes import wait_for
from engine.server import Server, environment

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
PARIS = json.dumps({"const": "Paris"})
"""A schema with one answer: `run` takes no sampling options, and a small model may go on for minutes."""


def vllama(server: Server, *arguments: str, stdin: str = "") -> str:
    """Run a command against the server and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "vllama", *arguments],
        env=environment(server.store, "command", {"OLLAMA_HOST": server.url}),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_run_answers_a_prompt(server: Server) -> None:
    assert vllama(server, "run", MODEL, "--format", PARIS, "What is the capital of France?").strip() == '"Paris"'


def test_run_takes_the_prompt_from_standard_input(server: Server) -> None:
    def count(*arguments: str, stdin: str) -> Any:
        output = vllama(server, "run", MODEL, "--format", PARIS, "--json", *arguments, stdin=stdin)
        return json.loads(output)["prompt_eval_count"]

    alone = count(stdin="What is the capital of France?")
    both = count("Answer briefly.", stdin="What is the capital of France?")

    assert alone == 16
    assert both > alone


def test_run_prints_the_timings_when_asked(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vllama", "run", MODEL, "--format", PARIS, "--verbose", "Capital of France?"],
        env=environment(server.store, "command", {"OLLAMA_HOST": server.url}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert all(line in done.stderr for line in ("total duration:", "prompt eval count:", "eval rate:"))


def test_list_and_ps_have_a_line_for_the_model(server: Server) -> None:
    for command in ("list", "ps"):
        heading, *lines = vllama(server, command).splitlines()

        assert heading.startswith("NAME")
        assert any(line.startswith(MODEL) for line in lines)


def test_ps_says_that_the_servers_model_stays_for_ever_on_the_cpu(server: Server) -> None:
    server.ask("/api/generate", {"model": MODEL, "keep_alive": -1})
    (line,) = (line for line in vllama(server, "ps").splitlines() if line.startswith(MODEL))

    assert "Forever" in line
    assert "8192" in line


def test_show_prints_architecture_parameters_and_context(server: Server) -> None:
    output = vllama(server, "show", MODEL)

    assert "llama" in output
    assert "134.52M" in output
    assert "8192" in output


def test_stop_unloads_the_model_and_ends_its_processes(breakable: Server, tiny: str) -> None:
    worker = breakable.load(tiny)
    vllama(breakable, "stop", tiny)

    assert breakable.loaded() == []
    wait_for(lambda: not worker.main.lives and len(breakable.tree.living()) == 1, "only the gateway is left", 20)
