"""`/v1` answers what Ollama answers, and its replies have no white space that Ollama removes (contract §2.5, §5)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from taught_model import LESSONS
from v1_fields.verdicts import Sample, described, samples

from engine.server import Record, Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
STRAWBERRY, LOOKING = (
    next(lesson for lesson in LESSONS if lesson.ending == ending)
    for ending in ("How many r are in strawberry?", "weather in Oslo, please.")
)
CALLING, LOOKING_UP = "What is the weather in Oslo?", "Look up the weather in Oslo, please."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edit files.", "format": GRAMMAR}
LIMITS = {CHAT: "max_tokens", COMPLETIONS: "max_tokens", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}


@pytest.fixture(scope="module")
def server(store: ModelStore, taught: str) -> Iterator[Server]:
    running = Server(store.root, "--model", taught)
    yield running
    running.close()


def asking(path: str, text: str, **fields: Any) -> Record:
    """A request of this API for a reply to a text, with a tool."""
    messages = [{"role": "user", "content": text}]
    nested = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
    body: dict[str, Record] = {
        CHAT: {"messages": messages, "tools": [nested]},
        COMPLETIONS: {"prompt": text},
        RESPONSES: {"input": text, "tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA}]},
        MESSAGES: {
            "messages": messages,
            "max_tokens": 99,
            "tools": [{"name": "get_weather", "input_schema": SCHEMA}],
        },
    }
    return {"model": "taught:tools", "temperature": 0, **body[path], **fields}


def events(server: Server, path: str, body: Record) -> list[Record]:
    """The events of a stream."""
    reply = server.post(path, {**body, "stream": True})
    assert reply.status_code == 200, reply.text
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def parts(server: Server, path: str, text: str, *, stream: bool) -> list[tuple[str, str]]:
    """What a reply consists of, in order: kinds of parts and their text (of calls, the names)."""
    body = asking(path, text)
    if not stream:
        reply = server.post(path, body)
        assert reply.status_code == 200, reply.text
        return _parts_of_whole(path, reply.json())
    said = [part for event in events(server, path, body) if (part := _part_of_event(path, event))]
    joined: list[tuple[str, str]] = []
    for kind, piece in said:
        if joined and joined[-1][0] == kind and kind != "call":
            joined[-1] = (kind, joined[-1][1] + piece)
        else:
            joined.append((kind, piece))
    return joined


def _parts_of_whole(path: str, reply: Record) -> list[tuple[str, str]]:
    if path == CHAT:
        message = reply["choices"][0]["message"]
        calls = [("call", call["function"]["name"]) for call in message.get("tool_calls") or ()]
        texts = [("thinking", message.get("reasoning")), ("text", message["content"])]
        return [(kind, text) for kind, text in texts if text is not None] + calls
    if path == COMPLETIONS:
        return [("text", reply["choices"][0]["text"])]
    if path == RESPONSES:
        return [
            ("thinking", item["content"][0]["text"]) if item["type"] == "reasoning"
            else ("call", item["name"]) if item["type"] == "function_call"
            else ("text", item["content"][0]["text"])
            for item in reply["output"]
        ]  # fmt: skip
    kinds = {"thinking": "thinking", "text": "text", "tool_use": "call"}
    return [(kinds[block["type"]], block.get("name") or block[block["type"]]) for block in reply["content"]]


def _part_of_event(path: str, event: Record) -> tuple[str, str] | None:
    """The part that an event begins or continues; a part that begins and stays empty is found too."""
    if path in (CHAT, COMPLETIONS):
        (choice,) = event["choices"]
        if path == COMPLETIONS:
            return ("text", choice["text"])
        delta = choice["delta"]
        if delta.get("tool_calls"):
            name = delta["tool_calls"][0]["function"].get("name")
            return ("call", name) if name else None
        if delta.get("role") or not delta:
            return None  # OpenAI's first chunk has the role and no text, the last neither
        return ("thinking", delta["reasoning"]) if "reasoning" in delta else ("text", delta["content"])
    if event["type"] in ("response.output_item.added", "content_block_start"):
        item = event.get("item") or event["content_block"]
        kind = {"reasoning": "thinking", "message": "text"}.get(item["type"], item["type"])
        return ("call", item["name"]) if "name" in item else (kind, "")
    if event["type"] in ("response.output_text.delta", "response.reasoning_text.delta"):
        return ("text" if "output" in event["type"] else "thinking", event["delta"])
    delta = event["delta"] if event["type"] == "content_block_delta" else {}
    return next(((kind, delta[kind]) for kind in ("text", "thinking") if kind in delta), None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_neither_thinking_nor_the_text_after_it_begins_with_blanks(server: Server, path: str, *, stream: bool) -> None:
    native = server.ask("/api/chat", {"model": "taught:tools", "options": {"temperature": 0}, "messages": [
        {"role": "user", "content": STRAWBERRY.ending}]})["message"]  # fmt: skip
    assert parts(server, path, STRAWBERRY.ending, stream=stream) == [
        ("thinking", native["thinking"]),
        ("text", native["content"]),
    ]
    assert native["content"] == STRAWBERRY.answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_has_no_blanks_before_its_text(server: Server, *, stream: bool) -> None:
    assert parts(server, COMPLETIONS, STRAWBERRY.ending, stream=stream) == [("text", STRAWBERRY.answer)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_no_empty_message_stands_before_a_call(server: Server, path: str, *, stream: bool) -> None:
    (thinking, _), *rest = parts(server, path, CALLING, stream=stream)
    assert (thinking, rest) == ("thinking", [("call", "get_weather")])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_text_before_a_call_ends_without_blanks(server: Server, path: str, *, stream: bool) -> None:
    _, *rest = parts(server, path, LOOKING_UP, stream=stream)
    assert rest == [("text", LOOKING.answer), ("call", "get_weather")]


# --- custom tools


@pytest.mark.parametrize("stream", [False, True])
def test_a_custom_tool_with_a_grammar_stands_beside_a_function(server: Server, *, stream: bool) -> None:
    body = asking(RESPONSES, CALLING)
    body["tools"].append(PATCH)
    if stream:
        (*_, last) = events(server, RESPONSES, body)
        output = last["response"]["output"]
    else:
        output = server.post(RESPONSES, body).json()["output"]
    call = output[-1]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call", "get_weather", {"city": "Oslo"},
    )  # fmt: skip


def test_a_call_of_a_custom_tool_comes_back_as_one_and_its_result_is_read(server: Server) -> None:
    """Codex takes a `custom_tool_call` with its `input`, and sends it back with a `custom_tool_call_output`."""
    tool = {**PATCH, "name": "get_weather"}  # what the model has learned to call
    body = asking(RESPONSES, CALLING, tools=[tool])
    whole = server.post(RESPONSES, body).json()["output"][-1]
    found = events(server, RESPONSES, body)
    (done,) = (event for event in found if event["type"] == "response.custom_tool_call_input.done")
    streamed = found[-1]["response"]["output"][-1]

    for call in (whole, streamed):
        assert (call["type"], call["name"]) == ("custom_tool_call", "get_weather")
        assert json.loads(call["input"]) == {"city": "Oslo"}
    assert done["input"] == streamed["input"]
    assert "".join(event["delta"] for event in found if event["type"] == "response.custom_tool_call_input.delta") in {
        "", streamed["input"],
    }  # fmt: skip
    history = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": CALLING}]},
        whole,
        {"type": "custom_tool_call_output", "call_id": whole["call_id"], "output": "7 degrees and sunny"},
    ]
    answer = server.post(RESPONSES, {**body, "input": history}).json()["output"][-1]
    assert answer["content"][0]["text"] == "It is sunny there."


# --- calls in streams and in histories


@pytest.mark.parametrize("text", [CALLING, LOOKING_UP])
def test_the_last_event_of_a_response_has_the_ids_that_were_streamed(server: Server, text: str) -> None:
    received = events(server, RESPONSES, asking(RESPONSES, text))
    streamed = [event["item"] for event in received if event["type"] == "response.output_item.done"]
    complete = received[-1]["response"]["output"]
    assert [(item["type"], item["id"], item.get("call_id")) for item in complete] == [
        (item["type"], item["id"], item.get("call_id")) for item in streamed
    ]
    assert complete[-1]["type"] == "function_call"


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_past_call_that_was_cut_off_does_not_end_the_conversation(server: Server, path: str) -> None:
    cut, result = '{"city": "Os', "the arguments are no JSON"
    function = {"name": "get_weather", "arguments": cut}
    history: dict[str, list[Record]] = {
        CHAT: [
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "c", "content": result},
        ],
        RESPONSES: [
            {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": cut},
            {"type": "function_call_output", "call_id": "c", "output": result},
        ],
    }
    messages = [{"role": "user", "content": CALLING}, *history[path], {"role": "user", "content": CALLING}]
    reply = server.post(path, asking(path, "", **{"messages" if path == CHAT else "input": messages}))
    assert reply.status_code == 200, reply.text
    assert "get_weather" in reply.text


def test_the_arguments_of_a_strict_tool_end(server: Server) -> None:
    """The schema wants a list where the model has learned a text: nothing but the grammar ends the white space."""
    cities = {"type": "array", "items": {"enum": ["Oslo"]}, "minItems": 1, "maxItems": 1}
    parameters = {"type": "object", "properties": {"city": cities}, "required": ["city"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": parameters}}
    reply = server.post(CHAT, asking(CHAT, CALLING, tools=[tool], max_tokens=200)).json()["choices"][0]
    (call,) = reply["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": ["Oslo"]}


def test_a_required_call_that_a_stop_string_cut_off_is_not_told_as_one(server: Server) -> None:
    body = asking(CHAT, CALLING, tool_choice="required", stop=["}"])
    reply = server.post(CHAT, body).json()["choices"][0]
    assert (reply["finish_reason"], reply["message"].get("tool_calls")) == ("stop", None)


def test_a_past_reply_may_be_all_thinking(server: Server) -> None:
    past = {"role": "assistant", "content": None, "reasoning_content": "A greeting."}
    hello = {"role": "user", "content": "Hello!"}
    reply = server.post(CHAT, asking(CHAT, "", messages=[hello, past, hello])).json()["choices"][0]
    assert reply["message"]["content"] == "Hello! How can I help you?"


# --- what Ollama accepts


def _answered(server: Server, sample: Sample) -> str:
    """Return why the body of a sample was not answered; "" if it was."""
    limit = {} if sample.name in ("max_tokens", "max_output_tokens") else {LIMITS[sample.path]: 1}
    limit = {} if sample.name == "max_completion_tokens" else limit
    reply = server.post(sample.path, {**sample.body, **limit, "model": "taught:tools"})
    if reply.status_code == 200 or re.search("does not support (vision|insert)", reply.text):
        return ""
    return f"{sample.name} {sample.shown}: {reply.status_code} {reply.text[:200]}"


@pytest.mark.parametrize("path", described())
def test_every_value_that_ollama_accepts_is_answered(server: Server, path: str) -> None:
    refused = described()[path].get("refused", {})
    tried = [sample for sample in samples() if sample.path == path and sample.name not in refused]
    assert [why for sample in tried if (why := _answered(server, sample))] == []


def test_a_prompt_that_is_too_long_says_by_how_much(server: Server, taught: str) -> None:
    served = server.post("/api/show", {"model": taught}).json()["model_info"]["mistral.context_length"]
    long = "word " * (served + 500)
    counted = server.post("/tokenize", {"model": taught, "prompt": long}).json()["count"]
    reply = server.post(MESSAGES, {"model": taught, "max_tokens": 9, "messages": [{"role": "user", "content": long}]})
    told = reply.json()
    found = re.fullmatch(r"prompt is too long: (\d+) tokens > (\d+) maximum", told["error"]["message"])

    assert (reply.status_code, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
    assert found
    assert int(found[2]) == served
    assert counted < int(found[1]) < counted + 40
