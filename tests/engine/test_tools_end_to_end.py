"""Tools, from the request to the wire, with a real engine and a model that was taught to call them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import openai
import pytest
from taught_model import TOOL_LESSONS

from engine.server import Record, Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CALL_ID = re.compile(r"call_[a-z0-9]{8}")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    },
}
SUNNY = TOOL_LESSONS[0]


@pytest.fixture(scope="module")
def server(store: ModelStore, taught: str) -> Iterator[Server]:
    running = Server(store.root, "--model", taught)
    yield running
    running.close()


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    made = ollama.Client(host=server.url, timeout=240)
    yield made
    made._client.close()


def asking(text: str, **fields: Any) -> Record:
    return {"model": "taught:tools", "messages": [{"role": "user", "content": text}], "tools": [WEATHER, ADD], **fields}


def calls_of(message: Record) -> list[tuple[str, Record]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]


def test_show_says_that_it_calls_tools_and_thinks_and_which_parsers_tell(client: ollama.Client, taught: str) -> None:
    shown = client.show(taught)

    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo
    assert shown.modelinfo["vllama.tool_parser"] == "hermes (<tool_call>)"
    assert shown.modelinfo["vllama.reasoning_parser"] == "qwen3 (enable_thinking)"


def test_a_call_streams_as_a_whole_on_a_line_of_its_own_before_the_last(server: Server) -> None:
    *lines, line, last = server.records("/api/chat", asking("What is the weather in Oslo?", think=False))

    assert [line["message"]["content"] for line in lines] == []
    assert list(line) == ["model", "created_at", "message", "done"]
    assert list(line["message"]) == ["role", "content", "tool_calls"]
    assert (line["message"]["role"], line["message"]["content"], line["done"]) == ("assistant", "", False)
    (call,) = line["message"]["tool_calls"]
    assert list(call) == ["id", "function"]
    assert CALL_ID.fullmatch(call["id"])
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")


def test_thinking_goes_before_the_call_and_neither_leaks_into_the_content(server: Server) -> None:
    *lines, line, _last = server.records("/api/chat", asking("What is the weather in Oslo?"))

    assert "".join(line["message"]["thinking"] for line in lines) == "I must ask the weather service.\n"
    assert all(line["message"]["content"] == "" for line in lines)
    assert calls_of(line["message"]) == [("get_weather", {"city": "Oslo"})]


def test_a_reply_that_is_not_streamed_holds_thinking_and_calls_in_one_record(server: Server) -> None:
    record = server.ask("/api/chat", asking("What is the weather in Oslo?"))

    assert list(record["message"]) == ["role", "content", "thinking", "tool_calls"]
    assert record["message"]["content"] == ""
    assert record["message"]["thinking"].strip() == "I must ask the weather service."
    assert calls_of(record["message"]) == [("get_weather", {"city": "Oslo"})]
    assert record["done_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_several_calls_keep_their_order_their_own_ids_and_are_numbered(server: Server, stream: bool) -> None:
    if stream:
        records = server.records("/api/chat", asking("What is the weather in Oslo and Bergen?"))
        calls = [call for record in records for call in record["message"].get("tool_calls", ())]
    else:
        record = server.ask("/api/chat", asking("What is the weather in Oslo and Bergen?"))
        calls = record["message"]["tool_calls"]

    assert [call["function"] for call in calls] == [
        {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}},
        {"index": 1, "name": "get_weather", "arguments": {"city": "Bergen"}},
    ]
    assert len({call["id"] for call in calls}) == 2


def test_text_before_a_call_is_content(server: Server) -> None:
    records = server.records("/api/chat", asking("Look up the weather in Oslo, please.", think=False))

    assert "".join(record["message"]["content"] for record in records).strip() == "I will look."
    assert calls_of(records[-2]["message"]) == [("get_weather", {"city": "Oslo"})]


def test_numbers_stay_numbers_and_a_call_without_arguments_has_an_empty_object(server: Server) -> None:
    added = server.ask("/api/chat", asking("Add 2 and 3.", think=False))
    clock = server.ask("/api/chat", asking("What time is it?", think=False))

    assert calls_of(added["message"]) == [("add", {"a": 2, "b": 3})]
    assert calls_of(clock["message"]) == [("get_time", {})]


def test_a_plain_answer_has_no_key_for_calls(server: Server) -> None:
    record = server.ask("/api/chat", asking("What is the capital of France?", think=False))

    assert record["message"] == {"role": "assistant", "content": "The capital of France is Paris."}


def test_a_call_that_num_predict_cuts_off_is_not_lost_and_is_no_call(server: Server) -> None:
    records = server.records("/api/chat", asking("weather in Oslo?", think=False, options={"num_predict": 12}))

    assert not any("tool_calls" in record["message"] for record in records)
    assert "get_weather" in "".join(record["message"]["content"] for record in records)
    assert records[-1]["done_reason"] == "length"


@pytest.mark.parametrize(
    "link",
    [{"tool_name": "get_weather"}, {"tool_call_id": "call_12345678"}, {}],
    ids=["tool_name", "tool_call_id", "neither"],
)
@pytest.mark.parametrize("content", ["", None], ids=["empty", "null"])
def test_the_result_of_a_tool_comes_back_however_it_is_linked(server: Server, link: Record, content: Any) -> None:
    call = {"id": "call_12345678", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    body = asking("What is the weather in Oslo?", think=False)
    body["messages"] += [
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": SUNNY.ending, **link},
    ]

    assert server.ask("/api/chat", body)["message"]["content"] == SUNNY.answer


def test_arguments_of_earlier_calls_may_be_a_string_and_reach_the_template_as_an_object(server: Server) -> None:
    body = asking("What is the weather in Oslo?", _debug_render_only=True)
    body["messages"].append(
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}],
        }
    )

    rendered = server.ask("/api/chat", body)["_debug_info"]["rendered_template"]

    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>' in rendered
    assert '"description": "The weather of a city"' in rendered


def test_the_official_client_makes_a_round_trip_with_a_python_function(client: ollama.Client, taught: str) -> None:
    def get_weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        return f"{city}: {SUNNY.ending}"

    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    reply = client.chat(taught, messages, tools=[get_weather])
    (call,) = reply.message.tool_calls or ()
    result = get_weather(**call.function.arguments)
    messages += [reply.message, {"role": "tool", "content": result, "tool_name": call.function.name}]

    assert call.function.name == "get_weather"
    assert result == f"Oslo: {SUNNY.ending}"
    assert client.chat(taught, messages, tools=[get_weather]).message.content == SUNNY.answer


def test_the_official_client_streams_calls(client: ollama.Client, taught: str) -> None:
    messages = [{"role": "user", "content": "What is the weather in Oslo and Bergen?"}]
    chunks = list(client.chat(taught, messages, tools=[WEATHER], stream=True))

    calls = [call for chunk in chunks for call in chunk.message.tool_calls or ()]
    assert [dict(call.function.arguments) for call in calls] == [{"city": "Oslo"}, {"city": "Bergen"}]
    assert not "".join(chunk.message.content or "" for chunk in chunks).strip()
    assert "".join(chunk.message.thinking or "" for chunk in chunks).strip() == "Two cities, two calls."


def test_openai_streams_and_returns_the_same_calls(server: Server, taught: str) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo and Bergen?"}]
    wanted = [("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Bergen"})]
    tools: list[Any] = [WEATHER]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="ollama", max_retries=0, timeout=240) as made:
        whole = made.chat.completions.create(model=taught, messages=messages, tools=tools).choices[0]
        chunks = list(made.chat.completions.create(model=taught, messages=messages, tools=tools, stream=True))
        messages += [whole.message, {"role": "tool", "tool_call_id": "call_1", "content": SUNNY.ending}]
        answer = made.chat.completions.create(model=taught, messages=messages, tools=tools).choices[0]

    made_calls: list[Any] = list(whole.message.tool_calls or ())
    assert [(call.function.name, json.loads(call.function.arguments)) for call in made_calls] == wanted
    assert whole.finish_reason == "tool_calls"
    streamed: dict[int, list[str]] = {}
    parts: list[Any] = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    for part in parts:
        name_and_arguments = streamed.setdefault(part.index, ["", ""])
        name_and_arguments[0] += part.function.name or ""
        name_and_arguments[1] += part.function.arguments or ""
    assert [(name, json.loads(arguments)) for name, arguments in streamed.values()] == wanted
    assert answer.message.content
    assert answer.message.content == SUNNY.answer


def test_tools_on_a_model_without_them_are_refused_as_recorded(server: Server) -> None:
    status, error = server.refusal("/api/chat", asking("Hello!", model="smollm2:135m"))

    assert (status, error) == (400, "registry.ollama.ai/library/smollm2:135m does not support tools")


def test_an_empty_list_of_tools_is_no_tools_at_all(server: Server) -> None:
    without = server.ask("/api/chat", asking("Hello!", tools=[], think=False))
    body = {**asking("Hello!", tools=[], _debug_render_only=True), "model": "smollm2:135m"}

    assert without["message"]["content"] == "Hello! How can I help you?"
    assert "_debug_info" in server.ask("/api/chat", body)


def test_what_looks_like_a_call_is_text_where_no_tools_were_given(server: Server) -> None:
    record = server.ask("/api/chat", asking("weather in Oslo?", tools=[], think=False))

    assert "tool_calls" not in record["message"]
    assert '{"name": "get_weather", "arguments": {"city": "Oslo"}}' in record["message"]["content"]


def test_flags_of_the_user_name_other_parsers_or_none(store: ModelStore, taught: str) -> None:
    """No model is loaded: what `show` says follows from the flags."""
    running = Server(store.root, "--", "--no-enable-auto-tool-choice", "--reasoning-parser", "deepseek_r1")
    try:
        shown = httpx.post(f"{running.url}/api/show", json={"model": taught}).json()
        refused = running.refusal("/api/chat", asking("weather in Oslo?"))
    finally:
        running.close()

    assert shown["capabilities"] == ["completion", "thinking"]
    assert shown["model_info"]["vllama.reasoning_parser"] == "deepseek_r1 (--reasoning-parser)"
    assert refused == (400, "registry.ollama.ai/library/taught:tools does not support tools")
