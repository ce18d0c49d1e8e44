from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Vllama
from .scripted_server import GENERATED, GENERATED_TEXT, LOADED, NOT_FOUND, SHOW, ScriptedServer, body, stream

THINKING = (
    b'{"model":"m","response":"","thinking":"Hm, ","done":false}\n',
    b'{"model":"m","response":"","thinking":"red.","done":false}\n',
    b'{"model":"m","response":"Red","done":false}\n',
    b'{"model":"m","response":"","done":true,"done_reason":"stop"}\n',
)


def show_with(**changes: Any) -> bytes:
    return json.dumps(json.loads(SHOW) | changes).encode()


def asked(server: ScriptedServer) -> dict[str, Any]:
    """Return the only generate request."""
    [sent] = server.bodies("/api/generate")
    assert isinstance(sent, dict)
    return sent


def test_a_prompt_is_answered_once(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", stream(*GENERATED))
    result = vllama("run", "smollm2:135m", "Why is the sky blue?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{GENERATED_TEXT}\n\n", "")
    assert server.requests == [
        ("POST", "/api/show", {"model": "smollm2:135m"}),
        ("POST", "/api/generate", {"model": "smollm2:135m", "prompt": "Why is the sky blue?", "options": {}}),
    ]


@pytest.mark.parametrize(
    ("words", "piped", "prompt"),
    [
        (["Why", "is", "it?"], "", "Why is it?"),
        ([], "a question", "a question"),
        (["summarise"], "a text\n", "a text\n summarise"),
    ],
)
def test_standard_input_comes_before_the_prompt_as_with_ollama(
    vllama: Vllama, server: ScriptedServer, words: list[str], piped: str, prompt: str
) -> None:
    server.on("POST", "/api/generate", stream(*GENERATED))
    vllama("run", "smollm2:135m", *words, stdin=piped)
    assert asked(server)["prompt"] == prompt


def test_without_a_prompt_and_without_a_terminal_the_model_is_loaded(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", body(LOADED))
    result = vllama("run", "smollm2:135m", stdin="")
    assert (result.exit_code, result.stdout) == (0, "")
    assert asked(server)["prompt"] == ""


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["--system", "Be brief."], {"system": "Be brief."}),
        (["--format", "json"], {"format": "json"}),
        (["--format", '{"type":"object"}'], {"format": {"type": "object"}}),
        (["--keepalive", "5m"], {"keep_alive": 300}),
        (["--keepalive", "1500ms"], {"keep_alive": 1.5}),
        (["--keepalive", "0"], {"keep_alive": 0}),
        (["--keepalive=-1"], {"keep_alive": -1}),
        (["--think"], {"think": True}),
        (["--think=false"], {"think": False}),
        (["--think=high"], {"think": "high"}),
        (["--think=xhigh"], {"think": "xhigh"}),
    ],
)
def test_an_option_adds_its_field_and_no_other(
    vllama: Vllama, server: ScriptedServer, arguments: list[str], sent: dict[str, Any]
) -> None:
    server.on("POST", "/api/generate", stream(*GENERATED))
    assert vllama("run", *arguments, "smollm2:135m", "hello").exit_code == 0
    assert asked(server) == {"model": "smollm2:135m", "prompt": "hello", "options": {}, **sent}


def test_think_does_not_swallow_the_prompt(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", stream(*GENERATED))
    vllama("run", "smollm2:135m", "--think", "hello", "--", "--think")
    assert asked(server)["prompt"] == "hello --think"
    assert asked(server)["think"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "xml"], "'xml' is neither json nor a JSON schema object"),
        (["--format", "[1]"], "'[1]' is neither json nor a JSON schema object"),
        (["--keepalive", "soon"], "Invalid value for '--keepalive': time: invalid duration \"soon\""),
    ],
)
def test_a_bad_value_asks_nothing(vllama: Vllama, server: ScriptedServer, arguments: list[str], message: str) -> None:
    result = vllama("run", *arguments, "smollm2:135m", "hello")
    assert result.exit_code == 2
    assert message in result.stderr
    assert server.requests == []


@pytest.mark.parametrize(
    ("capabilities", "flags", "think"),
    [
        (["completion", "thinking"], [], True),
        (["completion", "thinking"], ["--think=false"], False),
        (["completion"], [], None),
    ],
)
def test_a_model_that_can_think_does_unless_told_otherwise(
    vllama: Vllama, server: ScriptedServer, capabilities: list[str], flags: list[str], think: bool | None
) -> None:
    server.on("POST", "/api/show", body(show_with(capabilities=capabilities)))
    server.on("POST", "/api/generate", stream(*GENERATED))
    vllama("run", *flags, "smollm2:135m", "hello")
    assert asked(server).get("think") is think


def test_thinking_is_set_apart_from_the_answer(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", stream(*THINKING))
    result = vllama("run", "smollm2:135m", "Name a colour")
    assert result.stdout == "Thinking...\nHm, red.\n...done thinking.\n\nRed\n\n"


def test_thinking_can_be_hidden(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", stream(*THINKING))
    assert vllama("run", "--hidethinking", "smollm2:135m", "Name a colour").stdout == "Red\n\n"


def test_verbose_prints_ollamas_timings_on_stderr(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", stream(*GENERATED))
    result = vllama("run", "--verbose", "smollm2:135m", "hello")
    assert result.stdout == f"{GENERATED_TEXT}\n\n"
    assert result.stderr == (
        "total duration:       206.939154ms\n"
        "load duration:        38.322606ms\n"
        "prompt eval count:    15 token(s)\n"
        "prompt eval duration: 17.037692ms\n"
        "prompt eval rate:     880.40 tokens/s\n"
        "eval count:           8 token(s)\n"
        "eval duration:        146.487155ms\n"
        "eval rate:            54.61 tokens/s\n"
    )


def test_verbose_tells_cached_tokens_and_leaves_them_out_of_the_rate(vllama: Vllama, server: ScriptedServer) -> None:
    final = {"done": True, "response": "x", "prompt_eval_count": 21, "prompt_eval_cached_count": 16}
    server.on("POST", "/api/generate", stream(json.dumps({**final, "prompt_eval_duration": 56_452_000}).encode()))
    assert vllama("run", "--verbose", "smollm2:135m", "hello").stderr == (
        "prompt eval count:    21 token(s)\n"
        "prompt eval cached:   16 token(s)\n"
        "prompt eval duration: 56.452ms\n"
        "prompt eval rate:     88.57 tokens/s\n"
    )


def test_verbose_says_nothing_of_a_cache_that_was_not_used(vllama: Vllama, server: ScriptedServer) -> None:
    final = {"done": True, "response": "x", "prompt_eval_count": 21, "prompt_eval_cached_count": 0}
    server.on("POST", "/api/generate", stream(json.dumps(final).encode()))
    assert vllama("run", "--verbose", "smollm2:135m", "hello").stderr == "prompt eval count:    21 token(s)\n"


def test_json_prints_the_whole_answer_as_one_record(vllama: Vllama, server: ScriptedServer) -> None:
    record = {"model": "smollm2:135m", "response": "Red — “rot”", "done": True, "eval_count": 2}
    server.on("POST", "/api/generate", body(json.dumps(record).encode()))
    result = vllama("run", "--json", "smollm2:135m", "Name a colour")
    assert json.loads(result.stdout) == record
    assert asked(server)["stream"] is False


PULLING = (
    b'{"status":"pulling manifest"}\n',
    b'{"status":"pulling 3f1c9a0b77de","digest":"sha256:3f1c","total":4200,"completed":2100}\n',
    b'{"status":"success"}\n',
)


def test_a_model_that_is_not_stored_is_pulled_with_progress_and_then_answers(
    vllama: Vllama, server: ScriptedServer
) -> None:
    server.on("POST", "/api/show", body(NOT_FOUND, 404), body(SHOW))
    server.on("POST", "/api/pull", stream(*PULLING))
    server.on("POST", "/api/generate", stream(*GENERATED))
    result = vllama("run", "smollm2:135m", "hello")
    assert result.stdout == f"{GENERATED_TEXT}\n\n"
    assert result.stderr.splitlines()[1:] == ["pulling manifest", "pulling 3f1c9a0b77de (4.2 KB)", "success"]
    assert "smollm2:135m is not stored; pulling it" in result.stderr
    assert server.bodies("/api/pull") == [{"model": "smollm2:135m"}]


def test_a_pull_that_fails_ends_with_1_and_its_reason(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/show", body(NOT_FOUND, 404))
    server.on("POST", "/api/pull", stream(PULLING[0], b'{"error":"no known source for \'nope\'"}\n'))
    result = vllama("run", "nope", "hello")
    assert result.exit_code == 1
    assert result.stderr.endswith("Error: no known source for 'nope'\n")
    assert server.bodies("/api/generate") == []


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--no-pull"], {}), ([], {"VLLAMA_PULL": "0"}), ([], {"HF_HUB_OFFLINE": "1"})],
)
def test_where_a_pull_is_forbidden_an_unknown_model_ends_with_1_and_says_how_to_fetch_it(
    vllama: Vllama,
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server.on("POST", "/api/show", body(NOT_FOUND, 404))
    result = vllama("run", *arguments, "nope", "hello")
    assert result.exit_code == 1
    assert result.stderr == "Error: model 'nope' not found; to fetch it, run `vllama pull nope`\n"
    assert server.bodies("/api/pull") == server.bodies("/api/generate") == []


def test_an_error_in_the_stream_ends_with_1_after_the_text(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", stream(GENERATED[0], b'{"error":"the engine stopped"}\n'))
    result = vllama("run", "smollm2:135m", "hello")
    assert (result.exit_code, result.stdout) == (1, "The\n")
    assert result.stderr == "Error: the engine stopped\n"


def test_an_embedding_model_prints_its_vector(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/show", body(show_with(capabilities=["embedding"])))
    server.on("POST", "/api/embed", body(b'{"model":"all-minilm","embeddings":[[0.5,-0.25]]}'))
    result = vllama("run", "--keepalive", "5m", "all-minilm", "hello")
    assert (result.exit_code, result.stdout) == (0, "[0.5, -0.25]\n")
    assert server.bodies("/api/embed") == [{"model": "all-minilm", "input": "hello", "keep_alive": 300}]


def test_an_embedding_model_needs_a_text(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/show", body(show_with(capabilities=["embedding"])))
    result = vllama("run", "all-minilm", stdin="")
    assert result.exit_code == 2
    assert 'an embedding model needs text: vllama run all-minilm "your text"' in result.stderr


def test_an_embedding_that_never_came_is_an_error(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/show", body(show_with(capabilities=["embedding"])))
    server.on("POST", "/api/embed", body(b'{"embeddings":[]}'))
    assert vllama("run", "all-minilm", "hello").stderr == "Error: the server returned no embedding\n"
