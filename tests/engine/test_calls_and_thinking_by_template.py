"""SmolLM2 with Go templates that say how it calls tools and thinks: recorded exchanges 800 to 817 on the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from engine.server import Record, Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

TOOLS_TEMPLATE = (
    "{{- if .Tools }}<|im_start|>system\nTools: {{ range .Tools }}{{ . }}{{ end }}<|im_end|>\n{{ end }}"
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ if .ToolCalls }}{{ range .ToolCalls }}"
    '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}{{ else }}{{ .Content }}{{ end }}'
    "<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)
THINK_TEMPLATE = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}"
    "{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ if .Think }}<think>{{ end }}"
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["get_weather"]},
        "arguments": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris"]}},
            "required": ["city"],
        },
    },
    "required": ["name", "arguments"],
}
QUESTION: Any = {"role": "user", "content": "Weather in Paris?"}
GREEDY = {"temperature": 0, "num_predict": 8, "seed": 42}


@pytest.fixture(scope="module")
def server(store: ModelStore) -> Iterator[Server]:
    running = Server(store.root)
    yield running
    running.close()


@pytest.fixture(scope="module")
def openai_client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="ollama", max_retries=0, timeout=240) as made:
        yield made


def create(server: Server, name: str, template: str) -> str:
    made = server.post("/api/create", {"model": name, "from": "smollm2:135m", "template": template, "stream": False})
    assert made.json() == {"status": "success"}
    return name


@pytest.fixture(scope="module")
def caller(server: Server) -> str:
    return create(server, "smoltools", TOOLS_TEMPLATE)


@pytest.fixture(scope="module")
def thinker(server: Server) -> str:
    return create(server, "smolthink", THINK_TEMPLATE)


def capabilities(server: Server, name: str) -> list[str]:
    found: list[str] = server.post("/api/show", {"model": name}).json()["capabilities"]
    return found


def forced(caller: str, **fields: Any) -> Record:
    options = {"temperature": 0, "num_predict": 80, "seed": 42}
    return {"model": caller, "messages": [QUESTION], "tools": [WEATHER], "format": CALL, "options": options, **fields}


def test_the_template_gives_the_model_tools(server: Server, caller: str) -> None:
    assert capabilities(server, caller) == ["completion", "tools"]


def test_a_call_that_a_schema_forces_is_a_call(server: Server, caller: str) -> None:
    whole = server.ask("/api/chat", forced(caller))
    *_, line, last = server.records("/api/chat", forced(caller))

    assert whole["message"]["content"] == ""
    assert whole["done_reason"] == "stop"
    for message in (whole["message"], line["message"]):
        (call,) = message["tool_calls"]
        assert re.fullmatch(r"call_[a-z0-9]{8}", call["id"])
        assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}
    assert last["message"] == {"role": "assistant", "content": ""}


def test_openai_streams_the_forced_call(openai_client: openai.OpenAI, caller: str) -> None:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": CALL}}
    chunks = list(
        openai_client.chat.completions.create(
            model=caller,
            messages=[QUESTION],
            tools=[WEATHER],
            response_format=shape,
            temperature=0,
            max_tokens=80,
            stream=True,
        )
    )

    parts: list[Any] = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(part.function.name or "" for part in parts) == "get_weather"
    assert json.loads("".join(part.function.arguments or "" for part in parts)) == {"city": "Paris"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_words_are_no_call(server: Server, caller: str) -> None:
    body = {"model": caller, "messages": [QUESTION], "tools": [WEATHER], "options": GREEDY}
    record = server.ask("/api/chat", body)

    assert "tool_calls" not in record["message"]
    assert record["message"]["content"]
    assert record["message"]["content"] == "".join(
        line["message"]["content"] for line in server.records("/api/chat", body)
    )
    assert record["done_reason"] == "length"


def test_calls_and_results_are_rendered_as_the_template_says(server: Server, caller: str) -> None:
    call = {"id": "call_abc", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    history = [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "tool_call_id": "call_abc", "content": "sunny"},
    ]
    body = {"model": caller, "messages": history, "tools": [WEATHER], "_debug_render_only": True}

    rendered = server.ask("/api/chat", body)["_debug_info"]["rendered_template"]

    assert rendered.startswith('<|im_start|>system\nTools: {"type":"function","function":{"name":"get_weather"')
    assert rendered.endswith(
        "<|im_start|>user\nWeather in Paris?<|im_end|>\n"
        '<|im_start|>assistant\n{"name": "get_weather", "arguments": {"city":"Paris"}}<|im_end|>\n'
        "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_template_makes_the_model_think(server: Server, thinker: str) -> None:
    assert capabilities(server, thinker) == ["completion", "thinking"]


def test_thinking_that_the_template_opens_is_thinking_from_its_first_word(server: Server, thinker: str) -> None:
    body = {"model": thinker, "messages": [QUESTION], "options": GREEDY}
    whole = server.ask("/api/chat", body)
    *lines, last = server.records("/api/chat", {**body, "think": True})
    silent = server.ask("/api/chat", {**body, "think": False})

    assert (whole["message"]["content"], whole["done_reason"]) == ("", "length")
    assert whole["message"]["thinking"] == "".join(line["message"]["thinking"] for line in lines)
    assert last["eval_count"] == 8
    assert all(line["message"]["content"] == "" for line in lines)
    assert last["message"] == {"role": "assistant", "content": ""}
    assert silent["message"]["content"]
    assert "thinking" not in silent["message"]
    assert whole["prompt_eval_count"] == silent["prompt_eval_count"] + 3


def test_generate_thinks_by_default_too(server: Server, thinker: str) -> None:
    record = server.ask("/api/generate", {"model": thinker, "prompt": "Why is the sky blue?", "options": GREEDY})

    assert (record["response"], record["done_reason"]) == ("", "length")
    assert record["thinking"]


def test_openai_gives_the_thinking_as_reasoning(openai_client: openai.OpenAI, thinker: str) -> None:
    fields: Any = {"model": thinker, "messages": [QUESTION], "temperature": 0, "max_tokens": 8}
    whole: Any = openai_client.chat.completions.create(**fields).choices[0]
    chunks: list[Any] = list(openai_client.chat.completions.create(**fields, stream=True))

    assert not whole.message.content
    assert whole.message.reasoning
    assert (
        "".join(getattr(chunk.choices[0].delta, "reasoning", None) or "" for chunk in chunks) == whole.message.reasoning
    )
    assert not "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.finish_reason == "length"


def test_a_format_waits_for_the_end_of_thinking_and_num_predict_does_not(server: Server, thinker: str) -> None:
    body = {"model": thinker, "messages": [QUESTION], "format": "json", "options": GREEDY}

    thinking = server.ask("/api/chat", body)
    silent = server.ask("/api/chat", {**body, "think": False})

    assert (thinking["message"]["content"], thinking["done_reason"]) == ("", "length")
    assert thinking["message"]["thinking"]
    assert silent["message"]["content"].startswith("{")
