"""Thinking, separated from the answer by a real engine's parsers, and `format` beside it (contract §2.4, §2.5)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from taught_model import LESSONS

from engine.conftest import WithTemplate
from engine.server import Record, Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

QUESTION = "How many r are in strawberry?"
STRAWBERRY = next(lesson for lesson in LESSONS if lesson.ending == QUESTION)
ANN = next(lesson for lesson in LESSONS if lesson.ending == "How old is Ann?")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(store: ModelStore, taught: str) -> Iterator[Server]:
    running = Server(store.root)
    yield running
    running.close()


def with_parser(store: ModelStore, source: str, name: str, parser: str) -> str:
    """Another name for the model, whose own flags name a reasoning parser."""
    manifest = store.get(ModelName.parse(source))
    store.put(replace(manifest, name=ModelName.parse(name), engine_flags=("--reasoning-parser", parser)))
    return name


@pytest.fixture(scope="module", params=["qwen3", "opened", "granite", "deepseek_r1"])
def thinker(store: ModelStore, taught: str, taught_with: WithTemplate, request: pytest.FixtureRequest) -> str:
    """The name of a model, for each way to think: all tests of one are run before those of the next."""
    if request.param == "opened":  # the template writes `<think>`, not the model
        return taught_with("opened")
    if request.param == "granite":  # thinking is marked by plain words
        return with_parser(store, taught_with("phrases"), "taught:granite", "granite")
    if request.param == "deepseek_r1":  # may not take thinking for granted
        return with_parser(store, taught, "taught:r1", "deepseek_r1")
    return taught


def asking(text: str = QUESTION, model: str = "taught:tools", **fields: Any) -> Record:
    greedy = {"temperature": 0}
    return {"model": model, "messages": [{"role": "user", "content": text}], "options": greedy, **fields}


def thought(records: list[Record]) -> str:
    return "".join(record["message"].get("thinking", "") for record in records)


def said(records: list[Record]) -> str:
    return "".join(record["message"]["content"] for record in records)


@pytest.mark.parametrize("think", [None, True, "low", "medium", "high", "max"])
def test_thinking_is_on_by_default_and_at_every_level(server: Server, taught: str, think: Any) -> None:
    fields = {} if think is None else {"think": think}
    records = server.records("/api/chat", asking(**fields))
    whole = server.ask("/api/chat", asking(**fields))["message"]

    assert (thought(records).strip(), said(records)) == (STRAWBERRY.thinking, STRAWBERRY.answer)
    assert (whole["thinking"].strip(), whole["content"]) == (STRAWBERRY.thinking, STRAWBERRY.answer)


def test_a_line_holds_thinking_or_content_and_no_empty_thinking(server: Server, taught: str) -> None:
    *lines, last = server.records("/api/chat", asking())

    for line in lines:
        message = line["message"]
        assert list(message) in (["role", "content", "thinking"], ["role", "content"])
        assert message.get("thinking", message["content"]) != ""
        assert not ("thinking" in message and message["content"])
    kinds = ["thinking" in line["message"] for line in lines]
    assert kinds == sorted(kinds, reverse=True)
    assert last["message"] == {"role": "assistant", "content": ""}


def test_think_false_leaves_only_the_answer(server: Server, taught: str) -> None:
    records = server.records("/api/chat", asking(think=False))

    assert said(records) == STRAWBERRY.answer
    assert not any("thinking" in record["message"] for record in records)
    assert server.ask("/api/chat", asking(think=False))["message"] == {
        "role": "assistant", "content": STRAWBERRY.answer,
    }  # fmt: skip


def test_generate_separates_thinking_too(server: Server, taught: str) -> None:
    body = {"model": taught, "prompt": QUESTION}
    records = server.records("/api/generate", body)
    whole = server.ask("/api/generate", body)
    silent = server.ask("/api/generate", {**body, "think": False})

    assert "".join(record.get("thinking", "") for record in records).strip() == STRAWBERRY.thinking
    assert "".join(record["response"] for record in records) == STRAWBERRY.answer
    assert list(whole)[:4] == ["model", "created_at", "response", "thinking"]
    assert (whole["thinking"].strip(), whole["response"]) == (STRAWBERRY.thinking, STRAWBERRY.answer)
    assert ("thinking" in silent, silent["response"]) == (False, STRAWBERRY.answer)


def test_a_reply_that_is_cut_while_thinking_has_no_content_and_ends_by_length(server: Server, taught: str) -> None:
    fields: Record = {"options": {"num_predict": 6}}
    records = server.records("/api/chat", asking(**fields))
    whole = server.ask("/api/chat", asking(**fields))

    assert STRAWBERRY.thinking.startswith(thought(records).strip())
    assert thought(records).strip()
    assert said(records) == ""
    assert records[-1]["done_reason"] == "length"
    assert (whole["message"]["content"], whole["done_reason"]) == ("", "length")
    assert whole["message"]["thinking"]


def test_thinking_in_earlier_answers_does_not_hide_the_thinking_of_this_one(server: Server, taught: str) -> None:
    body = asking()
    body["messages"] = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello! How can I help you?"},
        *body["messages"],
    ]

    records = server.records("/api/chat", body)

    assert (thought(records).strip(), said(records)) == (STRAWBERRY.thinking, STRAWBERRY.answer)


def test_every_way_to_think_is_separated(server: Server, thinker: str) -> None:
    records = server.records("/api/chat", asking(model=thinker))
    silent = server.records("/api/chat", asking(model=thinker, think=False))

    assert (thought(records).strip(), said(records)) == (STRAWBERRY.thinking, STRAWBERRY.answer)
    assert (thought(silent), said(silent)) == ("", STRAWBERRY.answer)


SHAPES: list[Any] = ["json", PERSON]


@pytest.mark.parametrize("think", [True, False], ids=["thinking", "silent"])
@pytest.mark.parametrize("shape", SHAPES, ids=["json", "schema"])
def test_a_format_binds_the_answer_and_leaves_the_thinking_alone(
    server: Server, thinker: str, shape: Any, think: bool
) -> None:
    body = asking(ANN.ending, model=thinker, format=shape, think=think)
    records = server.records("/api/chat", body)
    whole = server.ask("/api/chat", body)

    assert said(records) == whole["message"]["content"]
    assert said(records).startswith("{")
    assert json.loads(said(records)) == {"name": "Ann", "age": 31}
    assert thought(records).strip() == (ANN.thinking if think else "")
    assert whole["message"].get("thinking", "").strip() == (ANN.thinking if think else "")
    assert (records[-1]["done_reason"], whole["done_reason"]) == ("stop", "stop")
    assert records[-1]["eval_count"] == whole["eval_count"]
    assert records[-1]["prompt_eval_count"] == whole["prompt_eval_count"]


@pytest.mark.parametrize("think", [True, False], ids=["thinking", "silent"])
def test_a_format_forces_what_the_model_would_not_say(server: Server, thinker: str, think: bool) -> None:
    shape = {"type": "string", "enum": ["two", "three"]}
    body = asking(model=thinker, format=shape, think=think)

    records = server.records("/api/chat", body)

    assert json.loads(said(records)) in shape["enum"]
    assert said(records).startswith('"')
    assert thought(records).strip() == (STRAWBERRY.thinking if think else "")


def test_num_predict_counts_thinking_and_answer_together_under_a_format(server: Server, taught: str) -> None:
    free = server.ask("/api/chat", asking(ANN.ending))
    body = asking(ANN.ending, format=PERSON, options={"num_predict": free["eval_count"] - 3})

    record = server.ask("/api/chat", {**body, "options": {"temperature": 0, **body["options"]}})

    assert record["eval_count"] == free["eval_count"] - 3
    assert record["done_reason"] == "length"
    assert record["message"]["content"].startswith('{"name"')


def test_a_format_keeps_logprobs_of_thinking_and_answer(server: Server, taught: str) -> None:
    records = server.records("/api/chat", asking(ANN.ending, format=PERSON, logprobs=True))
    tokens = [entry["token"] for record in records for entry in record.get("logprobs", ())]

    assert ANN.thinking in "".join(tokens)
    assert ANN.answer in "".join(tokens)


def test_a_format_with_tools_gives_json_and_no_call(server: Server, taught: str) -> None:
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    body = asking(ANN.ending, format=PERSON, tools=[weather])

    record = server.ask("/api/chat", body)

    assert json.loads(record["message"]["content"]) == {"name": "Ann", "age": 31}
    assert "tool_calls" not in record["message"]
