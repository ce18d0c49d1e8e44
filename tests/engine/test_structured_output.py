"""Answers in the form of a schema, by the real engine: with a random model the grammar alone decides the text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from engine.conftest import StartServer
from engine.server import Record, Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

RELAXED = "x-vllama-format-relaxed"
LABEL = {
    "type": "object",
    "properties": {"label": {"enum": ["spam", "ham"]}},
    "required": ["label"],
    "additionalProperties": False,
}
GREEDY: dict[str, Any] = {"num_predict": 150, "temperature": 0}


def holding(value: dict[str, Any]) -> dict[str, Any]:
    """A schema with one property of this schema."""
    return {"type": "object", "properties": {"a": value}, "required": ["a"]}


SERVED_WHOLE = {
    "uniqueItems false": holding({"type": "array", "items": {"enum": ["x"]}, "maxItems": 2, "uniqueItems": False}),
    "a tuple of zod 3": holding(
        {"type": "array", "items": [{"const": "x"}, {"const": 1}], "minItems": 2, "maxItems": 2}
    ),
    "a class of Unicode": holding({"type": "string", "pattern": r"^\p{L}{1,3}$"}),
    "patterns of names": {"type": "object", "patternProperties": {"^x$": {"const": 1}}, "maxProperties": 1},
}
SERVED_IN_PART = {
    "/properties/a/format": holding({"type": "string", "format": "int64"}),
    "/properties/a/uniqueItems": holding({"type": "array", "items": {"enum": ["x", "y"]}, "uniqueItems": True}),
    "/properties/a/contains": holding({"type": "array", "items": {"enum": ["x", "y"]}, "contains": {"const": "x"}}),
    "/properties/a/pattern": holding({"type": "string", "pattern": "^(?=x)x$"}),
}


@pytest.fixture(scope="module")
def model(server: Server, tiny: str) -> str:
    server.load(tiny)
    return tiny


def test_white_space_does_not_fill_the_answer(server: Server, model: str) -> None:
    reply = server.ask("/api/generate", {"model": model, "prompt": "x", "format": LABEL, "options": GREEDY})

    assert reply["done_reason"] == "stop"
    assert json.loads(reply["response"])["label"] in {"spam", "ham"}


def test_white_space_does_not_fill_the_answer_of_v1(server: Server, model: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": LABEL}}
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "response_format": wanted}
    reply = server.post("/v1/chat/completions", {**body, "max_tokens": 150, "temperature": 0}).json()

    assert reply["choices"][0]["finish_reason"] == "stop"
    assert json.loads(reply["choices"][0]["message"]["content"])["label"] in {"spam", "ham"}


def test_any_json_begins_with_an_object_and_little_space(server: Server, model: str) -> None:
    reply = server.ask("/api/generate", {"model": model, "prompt": "x", "format": "json", "options": GREEDY})

    begin = reply["response"]
    assert begin.startswith("{")
    assert len(begin) - len(begin[1:].lstrip()) <= 1 + 22


@pytest.mark.parametrize("schema", SERVED_WHOLE.values(), ids=SERVED_WHOLE.keys())
def test_a_schema_is_served_and_its_answer_is_valid(server: Server, model: str, schema: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "x"}]
    body = {"model": model, "messages": messages, "stream": False, "format": schema, "options": GREEDY}
    reply = server.post("/api/chat", body)

    assert reply.status_code == 200
    assert RELAXED not in reply.headers
    assert reply.json()["done_reason"] == "stop"
    assert isinstance(json.loads(reply.json()["message"]["content"]), dict)


@pytest.mark.parametrize(("pointer", "schema"), SERVED_IN_PART.items())
def test_what_is_not_enforced_is_told_in_a_header(
    server: Server, model: str, pointer: str, schema: dict[str, Any]
) -> None:
    messages = [{"role": "user", "content": "x"}]
    native = {"model": model, "messages": messages, "stream": False, "format": schema, "options": {"num_predict": 2}}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    openai = {"model": model, "messages": messages, "response_format": wanted, "max_tokens": 2}

    for path, body in (("/api/chat", native), ("/v1/chat/completions", openai)):
        reply = server.post(path, body)
        assert (reply.status_code, reply.headers[RELAXED]) == (200, pointer), path


@pytest.mark.parametrize(
    ("schema", "cause"),
    [
        (holding({"type": "string", "pattern": "^(x$"}), "at /properties/a/pattern: is no regular expression"),
        (holding({"type": "text"}), "at /properties/a/type: must be one of"),
        (holding({"$ref": "#/$defs/x"}), "at /properties/a/$ref: refers to nothing"),
        (holding({"enum": []}), "at /properties/a/enum: nothing satisfies it"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_place(
    server: Server, model: str, schema: dict[str, Any], cause: str
) -> None:
    status, message = server.refusal("/api/generate", {"model": model, "prompt": "x", "format": schema})
    assert (status, message.startswith(f"invalid JSON schema {cause}")) == (400, True), message

    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "response_format": wanted}
    reply = server.post("/v1/chat/completions", body)
    assert (reply.status_code, cause in reply.json()["error"]["message"]) == (400, True), reply.text


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["guidance", "outlines"])
def test_other_grammar_backends_bound_white_space(start_server: StartServer, tiny: str, backend: str) -> None:
    running = start_server("--model", tiny, "--structured-outputs-config.backend", backend)
    reply = running.ask("/api/generate", {"model": tiny, "prompt": "x", "format": LABEL, "options": GREEDY})

    assert reply["done_reason"] == "stop"
    assert json.loads(reply["response"])["label"] in {"spam", "ham"}


BOMBS: dict[str, Record] = {
    "many optional parts": {"grammar": "root ::= " + " ".join('([a-z ] | "\\\\" [x])?' for _ in range(2000))},
    "a long list of long values": {"json": {"enum": [f"{'x' * 250}{number}" for number in range(3900)]}},
    "tokens that are found slowly": {"grammar": 'root ::= c{1, 9000}\nc ::= [a-z ] | "_" [a-z]'},
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_grammar_that_takes_too_long_to_compile_never_reaches_the_engine(
    impatient: Server, tiny: str, bomb: Record
) -> None:
    request = {"model": tiny, "prompt": "Hi", "max_tokens": 4}
    refusal = impatient.post("/v1/completions", {**request, "structured_outputs": bomb})
    assert (refusal.status_code, "it takes too much time" in refusal.text) == (400, True), refusal.text
    reply = impatient.post("/v1/completions", {**request, "structured_outputs": {"choice": ["yes", "no"]}})
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["text"] in ("yes", "no")


def test_a_schema_that_takes_too_long_to_compile_is_refused_in_ollamas_form(impatient: Server, tiny: str) -> None:
    body = {"model": tiny, "messages": [{"role": "user", "content": "Hi"}], "stream": False}
    long = {"enum": [f"{'y' * 250}{number}" for number in range(3900)]}
    status, message = impatient.refusal("/api/chat", {**body, "format": long})
    assert status == 400
    assert "the grammar cannot be compiled: it takes too much time or memory to compile" in message
    options = {"num_predict": 4}
    assert (
        impatient.ask("/api/chat", {**body, "format": "json", "options": options})["message"]["content"]
        .lstrip()
        .startswith("{")
    )


@pytest.fixture(scope="module")
def impatient(store: ModelStore, tiny: str) -> Iterator[Server]:
    """A server whose grammars have one second."""
    server = Server(store.root, environ={"VLLAMA_GRAMMAR_TIMEOUT": "1s"})
    server.load(tiny)
    yield server
    server.close()
