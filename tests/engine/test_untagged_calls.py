"""Calls that a model writes as plain JSON where its template asks for tags: on all routes, streamed and whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from taught_model import _MESSAGES, KEPT, MANNERS

from engine.server import Record, Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

NAME = "taught:untagged"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLS = [("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Bergen"})]
QUESTION = "What is the weather in Oslo and Bergen?"
DATA = ("How old is Ann?", '{"name": "Ann", "age": 31}')
"""A question whose answer is JSON and no call."""


@pytest.fixture(scope="module")
def untagged(store: ModelStore, taught: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model with a template that tells of tags, and then makes it write JSON without any."""
    del taught  # has been taught
    snapshot = tmp_path_factory.mktemp("taught") / "untagged"
    shutil.copytree(KEPT, snapshot)
    end = next(manner.prompt_end for manner in MANNERS if manner.cue == "/json")
    asking = f"{{%- if add_generation_prompt %}}{{{{- {end!r} }}}}{{%- endif %}}\n"
    (snapshot / "chat_template.jinja").write_text(_MESSAGES + asking)
    for _ in pull(store, ModelName.parse(NAME), from_path=snapshot):
        pass
    return NAME


@pytest.fixture(scope="module")
def server(store: ModelStore, untagged: str) -> Iterator[Server]:
    running = Server(store.root, "--model", untagged)
    yield running
    running.close()


def asking(text: str, **fields: Any) -> Record:
    options = {"temperature": 0, "num_predict": 120}
    messages = [{"role": "user", "content": text}]
    return {"model": NAME, "messages": messages, "tools": [WEATHER], "options": options, **fields}


def calls_of(*messages: Record) -> list[tuple[str, Record]]:
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def test_the_parser_is_that_of_the_tags(server: Server) -> None:
    shown = server.post("/api/show", {"model": NAME}).json()
    assert shown["model_info"]["vllama.tool_parser"] == "hermes (<tool_call>)"


def test_the_api_returns_and_streams_the_calls(server: Server) -> None:
    message = server.ask("/api/chat", asking(QUESTION))["message"]
    streamed = [record["message"] for record in server.records("/api/chat", asking(QUESTION))]

    assert (message["content"], calls_of(message)) == ("", CALLS)
    assert ("".join(part["content"] for part in streamed), calls_of(*streamed)) == ("", CALLS)


def test_json_that_is_no_call_is_text(server: Server) -> None:
    question, answer = DATA
    records = server.records("/api/chat", asking(question))
    assert server.ask("/api/chat", asking(question))["message"] == {"role": "assistant", "content": answer}
    assert "".join(record["message"]["content"] for record in records) == answer
    assert len([record for record in records if record["message"]["content"]]) > 3


def test_without_tools_and_with_a_format_nothing_is_a_call(server: Server) -> None:
    call = {"type": "object", "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}}}
    for body in (asking("weather in Oslo?", tools=[]), asking("weather in Oslo?", format=call)):
        message = server.ask("/api/chat", body)["message"]
        assert "tool_calls" not in message
        assert json.loads(message["content"])["name"] == "get_weather"


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="ollama", max_retries=0, timeout=240) as made:
        yield made


def test_chat_completions_return_and_stream_the_calls(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [WEATHER],
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))

    calls: list[Any] = list(whole.message.tool_calls or ())
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == CALLS
    assert (whole.finish_reason, whole.message.content or "") == ("tool_calls", "")
    parts: list[Any] = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    assert [(part.function.name, json.loads(part.function.arguments)) for part in parts] == CALLS
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"


def test_chat_completions_leave_json_alone_where_a_format_was_asked_for(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "tools": [WEATHER], "response_format": {"type": "json_object"}, "temperature": 0}
    whole = client.chat.completions.create(messages=[{"role": "user", "content": "weather in Oslo?"}], **asked)
    message = whole.choices[0].message
    assert not message.tool_calls
    assert json.loads(message.content or "")["name"] == "get_weather"


def test_responses_return_and_stream_the_calls(client: openai.OpenAI) -> None:
    tool = {"type": "function", **WEATHER["function"]}
    asked: Any = {"model": NAME, "input": QUESTION, "tools": [tool], "temperature": 0}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))

    calls = [item for item in whole.output if item.type == "function_call"]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == CALLS
    assert whole.output_text == ""
    done: list[Any] = [event for event in events if event.type == "response.output_item.done"]
    assert [(event.item.name, json.loads(event.item.arguments)) for event in done] == CALLS


def test_messages_return_and_stream_the_calls(server: Server) -> None:
    function = WEATHER["function"]
    tool = {"name": function["name"], "input_schema": function["parameters"]}
    asked: Any = {
        "model": NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [tool],
        "max_tokens": 120,
        "extra_body": {"temperature": 0},
    }
    with anthropic.Anthropic(base_url=server.url, api_key="ollama", max_retries=0, timeout=240) as made:
        whole = made.messages.create(**asked)
        with made.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()

    replies: list[Any] = [whole, streamed]
    for message in replies:
        assert [(block.name, block.input) for block in message.content if block.type == "tool_use"] == CALLS
        assert not [block for block in message.content if block.type == "text" and block.text.strip()]
        assert message.stop_reason == "tool_use"


def test_an_option_turns_it_off(store: ModelStore, untagged: str) -> None:
    running = Server(store.root, "--model", untagged, "--no-untagged-calls")
    try:
        message = running.ask("/api/chat", asking("weather in Oslo?"))["message"]
    finally:
        running.close()
    assert message == {
        "role": "assistant",
        "content": '{"name": "get_weather", "arguments": {"city": "Oslo"}}',
    }
