"""`/api/chat` and `/api/generate` on a real engine: what goes over the wire."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.server import Record, Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
GREEDY = {"temperature": 0, "num_predict": 8, "seed": 42}
QUESTION = "Why is the sky blue?"
QUESTION_IDS = [1, 4093, 198, 4898, 314, 260, 6376, 4461, 47, 2, 198, 1, 520, 9531, 198]
"""The question in SmolLM2's chat template, as a recorded Ollama gives it in `context`."""

FIGURES = [
    "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_cached_count", "prompt_eval_duration",
    "eval_count", "eval_duration",
]  # fmt: skip
NANOSECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}Z")


def chat(text: str = QUESTION, **fields: Any) -> Record:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "options": GREEDY, **fields}


def generate(prompt: str = QUESTION, **fields: Any) -> Record:
    return {"model": MODEL, "prompt": prompt, "options": GREEDY, **fields}


def spoken(records: list[Record]) -> str:
    return "".join(record["message"]["content"] if "message" in record else record["response"] for record in records)


def test_the_first_command_of_the_readme_streams_an_answer_with_paris(server: Server) -> None:
    reply = server.post("/api/chat", chat("What is the capital of France?", options={"temperature": 0}))

    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.headers["transfer-encoding"] == "chunked"
    records = [json.loads(line) for line in reply.text.splitlines()]
    assert "Paris" in spoken(records)
    assert records[-1]["done_reason"] == "stop"


@pytest.mark.parametrize(("path", "body"), [("/api/chat", chat()), ("/api/generate", generate())])
def test_every_line_of_a_stream_is_one_compact_record_that_ends_in_a_newline(
    server: Server, path: str, body: Record
) -> None:
    text = server.post(path, body).text

    assert text.endswith("}\n")
    for line in text.removesuffix("\n").split("\n"):
        assert line == json.dumps(json.loads(line), separators=(",", ":"), ensure_ascii=False)


def test_chat_lines_have_exactly_the_recorded_keys(server: Server) -> None:
    *lines, last = server.records("/api/chat", chat())

    assert 1 < len(lines) <= 8  # one for each token, unless the machine is busy
    for line in lines:
        assert list(line) == ["model", "created_at", "message", "done"]
        assert list(line["message"]) == ["role", "content"]
        assert line["message"]["role"] == "assistant"
        assert line["message"]["content"]
        assert line["done"] is False
    assert list(last) == ["model", "created_at", "message", "done", "done_reason", *FIGURES]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["done"] is True


def test_generate_lines_have_exactly_the_recorded_keys(server: Server) -> None:
    *lines, last = server.records("/api/generate", generate())

    assert 1 < len(lines) <= 8  # one for each token, unless the machine is busy
    for line in lines:
        assert list(line) == ["model", "created_at", "response", "done"]
        assert line["response"]
        assert line["done"] is False
    assert list(last) == ["model", "created_at", "response", "done", "done_reason", "context", *FIGURES]
    assert last["response"] == ""
    assert last["done"] is True


def test_a_reply_that_is_not_streamed_is_one_json_record_with_the_streams_text(server: Server) -> None:
    for path, body in (("/api/chat", chat()), ("/api/generate", generate())):
        streamed = server.records(path, body)
        reply = server.post(path, {**body, "stream": False})

        assert reply.headers["content-type"] == "application/json; charset=utf-8"
        assert int(reply.headers["content-length"]) == len(reply.content)
        assert not reply.text.endswith("\n")
        whole = reply.json()
        assert list(whole) == list(streamed[-1])
        assert spoken([whole]) == spoken(streamed)
        assert whole["eval_count"] == streamed[-1]["eval_count"] == 8


def test_created_at_is_now_in_utc_with_nanoseconds_and_never_goes_back(server: Server) -> None:
    before = datetime.now(UTC)
    stamps = [record["created_at"] for record in server.records("/api/chat", chat())]

    assert all(NANOSECONDS.fullmatch(stamp) for stamp in stamps)
    times = [datetime.fromisoformat(stamp) for stamp in stamps]
    assert times == sorted(times)
    assert before - timedelta(milliseconds=1) <= times[0] <= times[-1] <= datetime.now(UTC)


def test_the_model_is_called_what_the_client_called_it(server: Server) -> None:
    record = server.ask("/api/chat", chat(model="SmolLM2:135M"))

    assert record["model"] == "SmolLM2:135M"


def test_an_answer_longer_than_num_predict_ends_by_length_and_a_finished_one_by_stop(server: Server) -> None:
    cut = server.ask("/api/chat", chat())
    finished = server.ask("/api/chat", chat("What is the capital of France?", options={"temperature": 0}))

    assert (cut["done_reason"], cut["eval_count"]) == ("length", 8)
    assert finished["done_reason"] == "stop"


def test_context_is_the_prompt_in_the_chat_template_and_then_the_answer(server: Server) -> None:
    record = server.ask("/api/generate", generate())

    assert record["context"][:15] == QUESTION_IDS
    assert record["prompt_eval_count"] == 15
    assert len(record["context"]) == 15 + record["eval_count"]


def test_the_end_of_text_token_is_counted_but_not_in_the_context(server: Server) -> None:
    record = server.ask("/api/generate", generate("What is the capital of France?", options={"temperature": 0}))

    assert record["done_reason"] == "stop"
    assert len(record["context"]) == record["prompt_eval_count"] + record["eval_count"] - 1


def test_context_comes_back_as_the_beginning_of_the_next_prompt(server: Server) -> None:
    first = server.ask("/api/generate", generate("My name is Bob."))
    alone = server.ask("/api/generate", generate("What is my name?"))
    second = server.ask("/api/generate", generate("What is my name?", context=first["context"]))

    assert second["prompt_eval_count"] == len(first["context"]) + alone["prompt_eval_count"]
    assert second["context"][: len(first["context"])] == first["context"]


def test_system_stands_before_the_prompt_in_generate(server: Server) -> None:
    record = server.ask("/api/generate", generate(system="Answer in French."))

    assert record["context"][:9] == [1, 9690, 198, 21350, 281, 3432, 30, 2, 198]
    assert record["context"][9:24] == QUESTION_IDS
    assert record["prompt_eval_count"] == 24
    assert record["response"] != server.ask("/api/generate", generate())["response"]


def test_a_system_message_of_a_chat_renders_like_system_of_generate(server: Server) -> None:
    messages = [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": QUESTION}]
    chatted = server.ask("/api/chat", chat(messages=messages))
    generated = server.ask("/api/generate", generate(system="Answer in French."))

    assert chatted["message"]["content"] == generated["response"]
    assert chatted["prompt_eval_count"] == generated["prompt_eval_count"]


def test_a_raw_prompt_is_sent_as_it_is_and_returns_no_context(server: Server) -> None:
    record = server.ask("/api/generate", generate("The capital of France is", raw=True))

    assert record["prompt_eval_count"] == 5
    assert "context" not in record
    assert "Paris" in record["response"]


def test_the_rendered_prompt_can_be_looked_at(server: Server) -> None:
    record = server.ask("/api/generate", generate(_debug_render_only=True))

    assert record["_debug_info"]["rendered_template"] == (
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert record["response"] == ""


def test_characters_that_take_several_tokens_are_never_split(server: Server) -> None:
    emoji = {"type": "string", "const": "日本語 🦙🦙 ünïcödé"}
    body = generate("Say it.", format=emoji, options={"temperature": 0, "num_predict": 100})

    records = server.records("/api/generate", body)

    assert json.loads(spoken(records)) == emoji["const"]
    assert all("�" not in record["response"] for record in records)
