"""Templates of requests and of models on a real engine (contract §2.3)."""

from __future__ import annotations

from typing import Any

import pytest

from engine.server import Record, Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
FULL_NAME = "registry.ollama.ai/library/smollm2:135m"
QUESTION = "What is the capital of France?"
GO = "{{ if .System }}{{ .System }}\n{{ end }}Q: {{ .Prompt }}\nA:{{ .Response }}\n"
JINJA = "Q: {{ messages[-1]['content'] }}\nA:"
GAP = "{{ if .Suffix }}<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ else }}{{ .Prompt }}{{ end }}"


def generate(prompt: str = QUESTION, **fields: Any) -> Record:
    return {
        "model": MODEL,
        "prompt": prompt,
        "stream": False,
        "options": {"temperature": 0, "num_predict": 8},
        **fields,
    }


def rendered(server: Server, path: str, body: Record) -> str:
    text: str = server.ask(path, {**body, "_debug_render_only": True})["_debug_info"]["rendered_template"]
    return text


def created(server: Server, name: str, **fields: Any) -> str:
    reply = server.post("/api/create", {"model": name, "from": MODEL, "stream": False, **fields})
    assert (reply.status_code, reply.text) == (200, '{"status":"success"}')
    return name


def test_a_template_of_the_request_replaces_that_of_the_model(server: Server) -> None:
    body = generate(template=GO, system="Be brief.")

    assert rendered(server, "/api/generate", body) == f"Be brief.\nQ: {QUESTION}\nA:"
    assert server.ask("/api/generate", body)["eval_count"] > 0


def test_a_jinja_template_of_a_model_shapes_its_prompts(server: Server) -> None:
    model = created(server, "jinja", template=JINJA)
    assert rendered(server, "/api/generate", generate(model=model)) == f"Q: {QUESTION}\nA:"


def test_a_go_template_of_a_model_shapes_its_prompts_and_needs_no_worker_of_its_own(server: Server) -> None:
    server.ask("/api/generate", generate())
    workers = server.workers()
    model = created(server, "quizzed", template=GO, system="Be brief.")

    assert rendered(server, "/api/generate", generate(model=model)) == f"Be brief.\nQ: {QUESTION}\nA:"
    chat = {"model": model, "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"},
                                         {"role": "user", "content": "3"}]}  # fmt: skip
    assert rendered(server, "/api/chat", chat) == "Be brief.\nQ: 1\nA:2\nQ: 3\nA:"
    assert server.workers() == workers


def test_a_go_template_with_a_suffix_fills_gaps(server: Server) -> None:
    model = created(server, "filling", template=GAP)

    assert server.ask("/api/show", {"model": model})["capabilities"] == ["completion", "insert"]
    body = generate("def f(", model=model, suffix="return 1")
    assert rendered(server, "/api/generate", body) == "<PRE>def f(<SUF>return 1<MID>"
    assert server.ask("/api/generate", body)["eval_count"] > 0
    assert rendered(server, "/api/generate", generate("def f(", model=model)) == "def f("


def test_a_suffix_in_a_template_of_the_request_does_not_make_a_model_fill_gaps(server: Server) -> None:
    body = generate("def f(", suffix="return 1", template=GAP)
    assert server.refusal("/api/generate", body) == (400, f"{FULL_NAME} does not support insert")


def test_a_template_that_does_not_parse_is_refused_in_gos_words(server: Server) -> None:
    status, error = server.refusal("/api/generate", generate(template="{{ .Prompt"))
    assert (status, error) == (500, "template: :1: unclosed action")
