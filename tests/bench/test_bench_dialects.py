"""What a reply says, in each of the four APIs, however its bytes were cut on the way."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.bench.dialects import DIALECTS, Prompt, Reply
from vllama.bench.result import Api, ServerTimes

CHAT = (
    b'{"model":"m","message":{"role":"assistant","content":"The"},"done":false}\n'
    b'{"model":"m","message":{"role":"assistant","content":" sky"},"done":false}\n'
    b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":410,'
    b'"load_duration":12,"prompt_eval_count":153,"prompt_eval_duration":21,"eval_count":2,"eval_duration":380}\n'
)
EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    b": ping\n\n"
    b'data: {"choices":[{"index":0,"delta":{"content":"The"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":""}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":" sky"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"!"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
    b"data: [DONE]\n\n"
)


def read(api: Api, *pieces: bytes, streamed: bool = True) -> Reply:
    """Read pieces that came at 1, 2, 3, … ns."""
    return DIALECTS[api].read(pieces, range(1, len(pieces) + 1), streamed=streamed)


def lines(body: bytes, separator: bytes) -> list[bytes]:
    return [part + separator for part in body.split(separator) if part]


def test_a_native_stream_gives_the_times_of_its_texts_its_counts_and_the_servers_durations() -> None:
    reply = read("ollama", *lines(CHAT, b"\n"))

    assert reply == Reply((1, 2), True, "", 153, 2, ServerTimes(410, 12, 21, 380))


def test_the_role_an_empty_delta_and_a_comment_are_no_text() -> None:
    reply = read("openai", *lines(EVENTS, b"\n\n"))

    assert reply == Reply((3, 5, 6), True, "", 7, 3)


def test_a_record_arrives_with_its_last_byte() -> None:
    reply = read("ollama", CHAT[:10], CHAT[10:80], CHAT[80:])

    assert reply.texts == (2, 3)


def test_records_of_one_read_arrive_together() -> None:
    assert read("openai", EVENTS).texts == (1, 1, 1)


def test_the_records_of_a_completion_have_their_text_elsewhere() -> None:
    body = b'data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[{"text":"","finish_reason":"stop"}]}\n\n'

    assert read("openai-completions", body + b"data: [DONE]\n\n") == Reply((1,), True)
    assert read("ollama-generate", b'{"response":"a","done":false}\n{"response":"","done":true}\n') == Reply((1,), True)


@pytest.mark.parametrize("field", ['"thinking":"hm"', '"content":"","tool_calls":[{"function":{"name":"f"}}]'])
def test_a_thought_and_a_call_are_text_too(field: str) -> None:
    body = b'{"message":{%b},"done":false}\n{"message":{"content":""},"done":true}\n' % field.encode()

    assert read("ollama", body).texts == (1,)


def test_a_stream_that_ends_before_its_end_is_not_finished() -> None:
    assert not read("ollama", *lines(CHAT, b"\n")[:-1]).finished
    assert not read("openai", *lines(EVENTS, b"\n\n")[:-1]).finished


def test_an_error_inside_a_stream_is_the_replys_error() -> None:
    assert read("ollama", lines(CHAT, b"\n")[0], b'{"error":"the runner died"}\n').error == "the runner died"
    assert read("openai", b'data: {"error":{"message":"out of memory"}}\n\n').error == "out of memory"


def test_a_whole_reply_has_counts_and_no_times_of_text() -> None:
    whole = b'{"message":{"content":"The sky"},"done":true,"prompt_eval_count":5,"eval_count":2}'
    openai = b'{"choices":[{"message":{"content":"The sky"}}],"usage":{"prompt_tokens":5,"completion_tokens":2}}'

    assert read("ollama", whole, streamed=False) == Reply((), True, "", 5, 2)
    assert read("openai", openai, streamed=False) == Reply((), True, "", 5, 2)
    assert DIALECTS["openai"].text(openai) == "The sky"


@given(st.lists(st.integers(0, len(EVENTS)), max_size=12))
def test_neither_text_nor_counts_depend_on_how_the_bytes_were_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(EVENTS)]
    reply = read("openai", *(EVENTS[a:b] for a, b in itertools.pairwise(edges)))

    assert (len(reply.texts), reply.finished, reply.tokens_in, reply.tokens_out) == (3, True, 7, 3)
    assert list(reply.texts) == sorted(reply.texts)
    assert DIALECTS["openai"].text(EVENTS) == "The sky!"


@pytest.mark.parametrize("api", DIALECTS)
def test_a_request_is_greedy_and_names_its_limit(api: Api) -> None:
    body = orjson.loads(DIALECTS[api].encode("m", Prompt("hello"), 50, stream=True, schema=None))
    sampling = body.get("options", body)

    assert body["stream"] is True
    assert sampling["temperature"] == 0
    assert sampling.get("num_predict", sampling.get("max_tokens")) == 50
    assert body.get("stream_options") == ({"include_usage": True} if api.startswith("openai") else None)


def test_a_schema_and_images_are_where_each_api_wants_them() -> None:
    prompt, schema = Prompt("what is it?", ("/9j/AA==",)), {"type": "object"}
    chat = orjson.loads(DIALECTS["ollama"].encode("m", prompt, 5, stream=False, schema=schema))
    completions = orjson.loads(DIALECTS["openai"].encode("m", prompt, 5, stream=False, schema=schema))

    assert (chat["format"], chat["messages"][0]["images"]) == (schema, ["/9j/AA=="])
    assert completions["response_format"]["json_schema"]["schema"] == schema
    assert completions["messages"][0]["content"][0]["image_url"]["url"] == "data:image/jpeg;base64,/9j/AA=="
