"""Chat templates that raise, on the routes of Ollama, OpenAI and Anthropic: conversations are repaired and answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from client_conversations import COUNTED, Shape
from refusing_templates import REFUSING

from engine.server import Record, Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALLING = '{% if false %}{{ tools }}{"name": x, "arguments": y}{% endif %}' + next(
    template for name, template in REFUSING.items() if "Mistral" in name
)
"""Refuses as Mistral's, and says how it calls tools."""

SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello."}
AGAIN = {"role": "user", "content": "Once more."}
BEGUN = {"role": "assistant", "content": "The capital of France is"}
FOLDED = "<user>Be brief.\n\nHello.\n\nOnce more.\n<assistant>"
CONTINUED = "<user>Be brief.\n\nHello.\n<assistant>The capital of France is"
LENGTH = {"num_predict": 2}


@pytest.fixture(scope="module")
def server(store: ModelStore, tiny: str) -> Iterator[Server]:
    running = Server(store.root)
    closed = "{{ raise_exception('We are closed.') }}"
    for name, template in (("strict", STRICT), ("calling", CALLING), ("closed", closed)):
        body = {"model": name, "from": tiny, "template": template, "stream": False}
        assert running.post("/api/create", body).json() == {"status": "success"}
    yield running
    running.close()


def rendered(server: Server, messages: list[Any]) -> str:
    body = {"model": "strict", "messages": messages, "_debug_render_only": True}
    text: str = server.ask("/api/chat", body)["_debug_info"]["rendered_template"]
    return text


def counted(server: Server, messages: list[Any]) -> int:
    """How many tokens the prompt has, by Ollama's own route."""
    record = server.ask("/api/chat", {"model": "strict", "messages": messages, "options": LENGTH})
    count: int = record["prompt_eval_count"]
    return count


def asked(server: Server, path: str, **fields: Any) -> Record:
    reply = server.post(path, {"model": "strict", **fields})
    assert reply.status_code == 200, reply.text
    record: Record = reply.json()
    return record


def test_what_a_template_refuses_is_folded_for_ollama_s_routes(server: Server) -> None:
    assert rendered(server, [SYSTEM, HELLO, AGAIN]) == FOLDED
    assert counted(server, [SYSTEM, HELLO, AGAIN]) > 0
    generated = server.ask(
        "/api/generate", {"model": "strict", "prompt": "Hello.", "system": "Be brief.", "_debug_render_only": True}
    )
    assert generated["_debug_info"]["rendered_template"] == "<user>Be brief.\n\nHello.\n<assistant>"


def test_what_a_template_refuses_is_folded_for_openai_s_and_anthropic_s_routes(server: Server) -> None:
    expected = counted(server, [SYSTEM, HELLO, AGAIN])

    chat = asked(server, "/v1/chat/completions", messages=[SYSTEM, HELLO, AGAIN], max_tokens=2)
    message = asked(server, "/v1/messages", system="Be brief.", messages=[HELLO, AGAIN], max_tokens=2)
    response = asked(server, "/v1/responses", instructions="Be brief.", input=[HELLO, AGAIN], max_output_tokens=2)

    assert chat["usage"]["prompt_tokens"] == expected
    assert message["usage"]["input_tokens"] == expected
    assert response["usage"]["input_tokens"] == expected


def test_a_repair_is_told_in_the_worker_s_log_once(server: Server) -> None:
    for _ in range(3):
        counted(server, [SYSTEM, HELLO, AGAIN])
    logs = "".join(path.read_text() for path in (server.store / "logs").glob("*.log"))

    assert logs.count("refuses a system message: it was put before the first user message") == 1


def test_an_assistant_s_last_message_is_continued_on_all_routes(server: Server) -> None:
    messages = [SYSTEM, HELLO, BEGUN]
    assert rendered(server, messages) == CONTINUED
    expected = counted(server, messages)

    chat = asked(server, "/v1/chat/completions", messages=messages, max_tokens=2)
    message = asked(server, "/v1/messages", system="Be brief.", messages=[HELLO, BEGUN], max_tokens=2)

    assert chat["usage"]["prompt_tokens"] == expected
    assert message["usage"]["input_tokens"] == expected
    assert not chat["choices"][0]["message"]["content"].startswith("The capital")


def test_a_template_that_renders_nothing_is_a_clear_error(server: Server) -> None:
    status, error = server.refusal("/api/chat", {"model": "closed", "messages": [HELLO]})
    assert (status, error) == (400, "the chat template cannot render these messages: We are closed.")

    reply = server.post("/v1/chat/completions", {"model": "closed", "messages": [HELLO]})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "the chat template cannot render these messages: We are closed."


@pytest.mark.parametrize("shape", COUNTED.values(), ids=COUNTED)
def test_every_shape_that_clients_send_is_answered(server: Server, shape: Shape) -> None:
    messages, tools = shape
    body = {"model": "calling", "messages": messages, **({"tools": tools} if tools else {})}

    assert server.ask("/api/chat", {**body, "options": LENGTH})["eval_count"] > 0
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    as_openai = [
        {
            **message,
            "tool_calls": [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ],
        }
        if message.get("tool_calls")
        else message
        for message in messages
    ]
    if all("id" in call for call in calls):  # OpenAI's clients always send ids
        reply = server.post("/v1/chat/completions", {**body, "messages": as_openai, "max_tokens": 2})
        assert reply.status_code == 200, reply.text
