"""The figures of the last record are the engine's own, and add up (contract §1.2)."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.server import Record, Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
CLIENTS = 8


def body(tokens: int) -> Record:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
        "options": {"temperature": 0, "num_predict": tokens},
    }


def parts(record: Record) -> int:
    """The parts of the total, in ns; what is missing on the wire is an error here."""
    return int(record["load_duration"] + record["prompt_eval_duration"] + record["eval_duration"])


def queued(server: Server) -> float:
    """All time that requests have spent in the engine's queue so far, in ns."""
    return server.worker(MODEL).metric("vllm:request_queue_time_seconds_sum") * 1e9


@pytest.mark.parametrize("stream", [True, False])
def test_load_prompt_and_eval_add_up_to_the_total_within_two_percent(server: Server, *, stream: bool) -> None:
    before = queued(server)
    request = body(96)
    record = server.records("/api/chat", request)[-1] if stream else server.ask("/api/chat", request)
    waited = queued(server) - before

    assert record["eval_count"] == 96
    assert record["prompt_eval_count"] > 10
    assert parts(record) <= record["total_duration"]
    assert parts(record) + waited >= 0.98 * record["total_duration"]


@pytest.mark.parametrize("stream", [True, False])
def test_the_total_is_what_the_clients_own_clock_says(server: Server, *, stream: bool) -> None:
    request = {**body(96), "stream": stream}
    server.client.get("/api/version")  # so that the connection stands
    started = time.monotonic_ns()
    reply = server.post("/api/chat", request)
    seen = time.monotonic_ns() - started

    total = Server.last_record(reply)["total_duration"]
    assert 0.95 * seen <= total <= seen


def test_with_eight_clients_only_the_engines_queue_is_missing_from_the_sum(server: Server) -> None:
    before = queued(server)
    with ThreadPoolExecutor(CLIENTS) as clients:
        records = list(clients.map(lambda _: server.records("/api/chat", body(64))[-1], range(CLIENTS)))
    waited = queued(server) - before

    assert all(parts(record) <= record["total_duration"] for record in records)
    total = sum(record["total_duration"] for record in records)
    assert sum(map(parts, records)) + waited >= 0.98 * total


def test_a_longer_answer_takes_longer_to_evaluate_and_its_prompt_does_not(server: Server) -> None:
    short, long = (server.ask("/api/chat", body(tokens)) for tokens in (8, 80))

    assert long["eval_duration"] > 4 * short["eval_duration"]
    assert long["prompt_eval_duration"] < long["eval_duration"]


def test_one_token_has_no_eval_duration_because_the_prompt_gave_it(server: Server) -> None:
    record = server.ask("/api/chat", body(1))

    assert record["eval_count"] == 1
    assert "eval_duration" not in record
    assert record["prompt_eval_duration"] > 0


LONG = "Tell me all about the lighthouse that stands beyond the harbour. " * 40


def with_long(text: str, tokens: int = 2) -> Record:
    return {**body(tokens), "messages": [{"role": "user", "content": f"{text} {LONG}"}]}


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_was_read_before_is_told_as_cached(server: Server, *, stream: bool) -> None:
    request = with_long(f"Once more, stream {stream}.")
    first, second = (
        server.records("/api/chat", request)[-1] if stream else server.ask("/api/chat", request) for _ in range(2)
    )
    assert first["prompt_eval_cached_count"] == 0
    assert 0 < second["prompt_eval_cached_count"] < second["prompt_eval_count"] == first["prompt_eval_count"]


def test_cached_tokens_have_the_names_of_each_api(server: Server) -> None:
    request = with_long("Under all names.")
    cached = [server.ask("/api/chat", request)["prompt_eval_cached_count"] for _ in range(2)][-1]
    messages = request["messages"]
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 2}
    chat = server.ask("/v1/chat/completions", {**fields, "messages": messages})["usage"]
    complete = server.ask("/v1/completions", {**fields, "prompt": messages[0]["content"]})["usage"]
    message = server.ask("/v1/messages", {**fields, "messages": messages})["usage"]
    asked = {"model": MODEL, "input": messages[0]["content"], "max_output_tokens": 2}
    response = server.ask("/v1/responses", asked)["usage"]
    assert cached > 0
    assert [
        chat["prompt_tokens_details"]["cached_tokens"],
        complete["prompt_tokens_details"]["cached_tokens"],
        message["cache_read_input_tokens"],
        response["input_tokens_details"]["cached_tokens"],
    ] == [cached] * 4
    assert message["input_tokens"] + cached == chat["prompt_tokens"]


def test_a_stream_of_chat_completions_tells_cached_tokens_with_its_usage(server: Server) -> None:
    asked = {"model": MODEL, "messages": with_long("In a stream.")["messages"], "max_tokens": 2, "stream": True}
    for _ in range(2):
        reply = server.post("/v1/chat/completions", {**asked, "stream_options": {"include_usage": True}})
    *_, last = (line[6:] for line in reply.text.splitlines() if line.startswith("data: {"))
    assert json.loads(last)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
