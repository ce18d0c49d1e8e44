"""`options`, `format`, `logprobs` and what a plain text model refuses, on a real engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.server import Record, Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
FULL_NAME = "registry.ollama.ai/library/smollm2:135m"
QUESTION = "Why is the sky blue?"
SHORT = "What is the capital of France?"
TOO_LONG = "the input length exceeds the context length"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def generate(prompt: str = QUESTION, *, fields: Record | None = None, **options: Any) -> Record:
    return {
        "model": MODEL,
        "prompt": prompt,
        "options": {"temperature": 0, "num_predict": 8, **options},
        **(fields or {}),
    }


def chat(text: str = QUESTION, **fields: Any) -> Record:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "options": {"temperature": 0, "num_predict": 8},
        **fields,
    }


@pytest.mark.parametrize("num_predict", [0, -1, -2, 10**12])
def test_without_a_limit_the_model_speaks_until_it_stops(server: Server, num_predict: int) -> None:
    record = server.ask("/api/generate", generate(SHORT, num_predict=num_predict))

    assert "Paris" in record["response"]
    assert record["done_reason"] == "stop"


@pytest.mark.parametrize("num_predict", [1, 8])
def test_num_predict_is_the_number_of_tokens_generated(server: Server, num_predict: int) -> None:
    body = generate(num_predict=num_predict, fields={"logprobs": True})
    *lines, last = server.records("/api/generate", body)

    assert last["eval_count"] == num_predict
    assert sum(len(line["logprobs"]) for line in lines) == num_predict
    assert len(last["context"]) - last["prompt_eval_count"] == num_predict
    assert last["done_reason"] == "length"


@pytest.mark.parametrize(
    "stop",
    [
        ["blue"],
        "blue",
        ["web", "blue"],
        ["sky blue", "User:"],
    ],
)
def test_text_ends_right_before_a_stop_string(server: Server, stop: list[str] | str) -> None:
    free = server.ask("/api/generate", generate(num_predict=16))["response"]
    body = generate(num_predict=16, stop=stop)
    whole = server.ask("/api/generate", body)
    streamed = server.records("/api/generate", body)

    strings = [stop] if isinstance(stop, str) else stop
    cut = min(free.find(string) for string in strings if string in free)
    assert cut > 0
    assert whole["response"] == free[:cut]
    assert "".join(record["response"] for record in streamed) == free[:cut]
    assert whole["done_reason"] == streamed[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("stop", ["", [""], [], None])
def test_an_empty_stop_string_stops_nothing(server: Server, stop: Any) -> None:
    record = server.ask("/api/generate", generate(stop=stop))

    assert (record["eval_count"], record["done_reason"]) == (8, "length")


def test_the_same_seed_gives_the_same_words_and_another_seed_others(server: Server) -> None:
    def words(seed: int) -> str:
        return str(server.ask("/api/generate", generate(temperature=1.5, seed=seed, num_predict=32))["response"])

    assert words(7) == words(7)
    assert words(7) != words(8)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("temperature", "hot", "of type float32"),
        ("num_predict", "8", "of type integer"),
        ("top_k", True, "of type integer"),
        ("use_mmap", 3, "of type boolean"),
        ("stop", 3, "of type array"),
        ("stop", [3], "of an array of strings"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_with_its_name(server: Server, name: str, value: Any, kind: str) -> None:
    assert server.refusal("/api/generate", generate(**{name: value})) == (400, f'option "{name}" must be {kind}')


def test_options_that_nobody_knows_and_null_ones_change_nothing(server: Server) -> None:
    plain = server.ask("/api/generate", generate())
    record = server.ask("/api/generate", generate(nonsense=1, mirostat=2, num_gpu=0, top_k=None, num_thread=8.5))

    assert record["response"] == plain["response"]


def test_sampling_options_out_of_vllms_range_are_brought_into_it(server: Server) -> None:
    extreme: dict[str, Any] = {
        "temperature": 9,
        "top_p": 0,
        "top_k": -1,
        "min_p": 7,
        "repeat_penalty": 0,
        "presence_penalty": 99,
    }

    assert server.ask("/api/generate", generate(seed=2**64 + 1, **extreme))["eval_count"] > 0


def test_num_ctx_ends_a_reply_that_may_not_shift_and_reloads_nothing(server: Server) -> None:
    worker = server.worker(MODEL)
    record = server.ask("/api/generate", generate(num_ctx=20, num_predict=50, fields={"shift": False}))

    assert (record["prompt_eval_count"], record["eval_count"], record["done_reason"]) == (15, 6, "length")
    assert server.worker(MODEL) == worker


def test_a_reply_that_may_shift_goes_on_beyond_num_ctx(server: Server) -> None:
    record = server.ask("/api/generate", generate(num_ctx=20, num_predict=30))

    assert (record["prompt_eval_count"], record["eval_count"], record["done_reason"]) == (15, 30, "length")
    assert record["response"] == server.ask("/api/generate", generate(num_predict=30))["response"]


def test_a_prompt_that_is_too_long_loses_its_middle(server: Server) -> None:
    begin, end = "Zebra zebra. ", "What is the capital of France?"
    record = server.ask("/api/generate", generate(begin + "word " * 200 + end, num_ctx=40, num_keep=8))

    assert (record["prompt_eval_count"], record["eval_count"]) == (40, 8)
    whole = server.ask("/api/generate", generate(begin + "word " * 200 + end))
    prompt = whole["context"][: whole["prompt_eval_count"]]
    assert record["context"][:40] == [*prompt[:8], *prompt[-32:]]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("forbidden", [{"truncate": False}, {"shift": False}], ids=str)
def test_a_prompt_that_is_too_long_is_refused_where_it_may_not_be_cut(
    server: Server, forbidden: dict[str, bool], *, stream: bool
) -> None:
    too_long = "word " * 9000
    for path, body in (
        ("/api/generate", generate(too_long)),
        ("/api/generate", generate(num_ctx=14)),
        ("/api/chat", chat(too_long)),
    ):
        assert server.refusal(path, {**body, **forbidden, "stream": stream}) == (400, TOO_LONG)


def test_a_prompt_longer_than_all_that_is_served_leaves_room_for_the_reply(server: Server, tiny: str) -> None:
    record = server.ask("/api/chat", {**chat("word " * 9000), "model": tiny})

    assert (record["prompt_eval_count"], record["eval_count"] <= 8) == (8192 - 8, True)


def test_logprobs_come_with_each_line_and_whole_in_one_reply(server: Server) -> None:
    body = generate(num_predict=3, fields={"logprobs": True, "top_logprobs": 3})
    *lines, last = server.records("/api/generate", body)
    whole = server.ask("/api/generate", body)

    streamed = [item for line in lines for item in line["logprobs"]]
    assert "logprobs" not in last
    assert [item["token"] for item in whole["logprobs"]] == [item["token"] for item in streamed]
    assert "".join(item["token"] for item in streamed) == whole["response"]
    for item in streamed:
        assert list(item) == ["token", "logprob", "bytes", "top_logprobs"]
        assert bytes(item["bytes"]).decode() == item["token"]
        assert item["logprob"] <= 0
        ranked = [alternative["logprob"] for alternative in item["top_logprobs"]]
        assert len(ranked) == 3
        assert ranked == sorted(ranked, reverse=True)
        assert item["top_logprobs"][0]["token"] == item["token"]  # greedy
        assert all(list(alternative) == ["token", "logprob", "bytes"] for alternative in item["top_logprobs"])


def test_logprobs_alone_bring_no_alternatives_and_alternatives_alone_nothing(server: Server) -> None:
    alone = server.ask("/api/generate", generate(num_predict=3, fields={"logprobs": True}))
    neither = server.ask("/api/generate", generate(num_predict=3, fields={"top_logprobs": 3}))

    assert [list(item) for item in alone["logprobs"]] == [["token", "logprob", "bytes"]] * 3
    assert "logprobs" not in neither


def test_logprobs_of_a_chat_stand_beside_the_message(server: Server) -> None:
    record = server.ask("/api/chat", chat(logprobs=True, top_logprobs=2))

    assert [len(item["top_logprobs"]) for item in record["logprobs"]] == [2] * 8


@pytest.mark.parametrize("count", [-1, 21])
def test_more_than_twenty_alternatives_are_refused(server: Server, count: int) -> None:
    body = generate(fields={"logprobs": True, "top_logprobs": count})

    assert server.refusal("/api/generate", body) == (400, "top_logprobs must be between 0 and 20")


@pytest.mark.parametrize("stream", [True, False])
def test_a_schema_decides_the_shape_of_the_answer(server: Server, *, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["age", "ok"],
        "additionalProperties": False,
    }
    body = generate("Bob is 22 and ok. JSON.", num_predict=100, fields={"format": schema, "stream": stream})
    records = server.records("/api/generate", body) if stream else [server.ask("/api/generate", body)]

    answer = json.loads("".join(record["response"] for record in records))
    assert records[-1]["done_reason"] == "stop"
    assert {key: type(value) for key, value in answer.items()} == {"age": int, "ok": bool}


@pytest.mark.parametrize("format_", ["json", {}])
def test_an_answer_in_json_is_an_object(server: Server, format_: Any) -> None:
    record = server.ask("/api/chat", chat("JSON:", format=format_, options={"temperature": 0, "num_predict": 200}))

    assert record["done_reason"] == "stop"
    assert isinstance(json.loads(record["message"]["content"]), dict)


@pytest.mark.parametrize("format_", ["", None])
def test_an_empty_format_is_none(server: Server, format_: Any) -> None:
    plain = server.ask("/api/generate", generate())
    record = server.ask("/api/generate", generate(fields={"format": format_}))

    assert record["response"] == plain["response"]


@pytest.mark.parametrize(("format_", "shown"), [("xml", r"\"xml\""), (3, "3"), ([], "[]")])
def test_a_format_that_is_none_is_refused_as_ollama_does(server: Server, format_: Any, shown: str) -> None:
    status, error = server.refusal("/api/generate", generate(fields={"format": format_}))

    assert status == 500
    assert error == f'invalid format: "{shown}"; expected "json" or a valid JSON Schema object'


def test_a_schema_that_vllm_cannot_follow_is_refused_before_the_first_line(server: Server) -> None:
    status, error = server.refusal("/api/generate", generate(fields={"format": {"type": "foo"}}))

    assert status == 400
    assert "foo" in error


def test_think_false_is_fine_for_a_model_that_cannot_think(server: Server) -> None:
    assert server.ask("/api/generate", generate(fields={"think": False}))["eval_count"] == 8
    assert server.ask("/api/chat", chat(think=False))["eval_count"] == 8


@pytest.mark.parametrize("think", [True, "high"])
def test_thinking_is_refused_by_a_model_that_cannot(server: Server, think: Any) -> None:
    refusal = (400, f'"{MODEL}" does not support thinking')

    assert server.refusal("/api/generate", generate(fields={"think": think})) == refusal
    assert server.refusal("/api/chat", chat(think=think)) == refusal


def test_tools_are_refused_by_a_model_without_them_and_no_tools_are_fine(server: Server) -> None:
    assert server.refusal("/api/chat", chat(tools=[TOOL])) == (400, f"{FULL_NAME} does not support tools")
    assert server.ask("/api/chat", chat(tools=[]))["eval_count"] == 8


def test_a_suffix_and_images_are_refused_clearly(server: Server) -> None:
    def refusal(**fields: Any) -> tuple[int, str]:
        return server.refusal("/api/generate", generate(fields=fields))

    assert refusal(suffix="}") == (400, f"{FULL_NAME} does not support insert")
    assert refusal(images=[PIXEL]) == (400, f"{FULL_NAME} does not support vision")
    with_image = [{"role": "user", "content": "What is it?", "images": [PIXEL]}]
    assert server.refusal("/api/chat", chat(messages=with_image)) == (400, f"{FULL_NAME} does not support vision")
    assert server.refusal("/api/generate", generate(fields={"raw": True, "system": "x"})) == (
        400,
        "raw mode does not support template, system, or context",
    )
