"""What counts as a difference, and what another run may change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from replay.comparison import differences
from replay.recording import Exchange, Response, exchanges

GENERATED = "102_generate_nonstream"
STREAMED = "103_generate_stream"
CHUNKED = "512_v1_chat_stream_include_usage"
LOGPROBS = "161_generate_logprobs_top3_stream"
CHATTED = "257_chat_logprobs"


def found(exchange: Exchange, actual: Response) -> list[str]:
    return [difference.where for difference in differences(exchange, actual)]


def changed(exchange: Exchange, **changes: Any) -> Response:
    """The recorded response with other values in its JSON body; None takes a key out."""
    record = {**json.loads(exchange.response.body), **changes}
    body = json.dumps({key: value for key, value in record.items() if value is not None}).encode()
    return replace(exchange.response, body=body)


def with_headers(response: Response, **headers: str | None) -> Response:
    kept = [(name, value) for name, value in response.headers if name not in headers]
    added = [(name, value) for name, value in headers.items() if value is not None]
    return replace(response, headers=(*kept, *added))


@pytest.mark.parametrize("name", exchanges())
def test_a_recorded_response_is_like_itself(name: str) -> None:
    assert found(exchanges()[name], exchanges()[name].response) == []


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (GENERATED, "153_generate_think_false"),
        (STREAMED, "103_generate_stream"),
        ("201_chat_stream", "202_chat_stream_true"),
        ("525_v1_chat_stop_string", "526_v1_chat_stop_list"),
        ("231b_ps_after_keep_alive_300", "232b_ps_after_keep_alive_minus1"),
        ("862_max_queue_1_v1_stream_concurrent_0", "862_max_queue_1_v1_stream_concurrent_3"),
    ],
)
def test_another_run_with_other_words_times_and_digests_is_the_same(name: str, other: str) -> None:
    assert found(exchanges()[name], exchanges()[other].response) == []


def test_status_content_type_and_other_headers_are_compared() -> None:
    exchange = exchanges()["415_delete_post_wrong_method"]
    other = with_headers(exchange.response, allow="GET", server="x", date="another")

    assert found(exchange, replace(other, status=404)) == ["status", "header allow", "header server"]
    assert found(exchanges()["000_api_tags_empty_store"], exchanges()["001_get_root"].response) == [
        "header content-type",
        "body",
    ]


def test_a_charset_counts() -> None:
    exchange = exchanges()[GENERATED]

    assert found(exchange, with_headers(exchange.response, **{"content-type": "application/json"})) == [
        "header content-type"
    ]


def test_a_reason_phrase_counts_where_the_status_is_the_same() -> None:
    exchange = exchanges()["661_http11_no_host"]

    assert found(exchange, replace(exchange.response, reason="Bad Request")) == ["reason"]


def test_chunks_and_a_length_are_not_the_same_framing() -> None:
    exchange = exchanges()[STREAMED]
    whole = with_headers(exchange.response, **{"transfer-encoding": None, "content-length": "1200"})

    assert found(exchange, whole) == ["framing"]


def test_the_length_that_head_gives_counts() -> None:
    exchange = exchanges()["002_head_root"]

    assert found(exchange, with_headers(exchange.response, **{"content-length": "0"})) == ["framing"]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"model": "other"}, ["body.model"]),
        ({"done": False}, ["body.done"]),
        ({"response": ""}, ["body.response"]),
        ({"response": None}, ["body.response"]),
        ({"thinking": ""}, ["body.thinking"]),
        ({"created_at": "2026-11-21T09:11:10.902169599+01:00"}, ["body.created_at"]),
        ({"created_at": 5}, ["body.created_at"]),
        ({"total_duration": 0}, ["body.total_duration"]),
        ({"total_duration": 1.5}, ["body.total_duration"]),
        ({"prompt_eval_count": 16}, ["body.prompt_eval_count"]),
        ({"eval_count": 9}, ["body.eval_count"]),
        ({"eval_count": 7}, ["body.eval_count"]),
        ({"eval_count": 9, "done_reason": "stop"}, ["body.eval_count"]),
        ({"done_reason": "load"}, ["body.done_reason"]),
        ({"context": [1, 2, 3]}, ["body.context"]),
        ({"context": ["1"]}, ["body.context"]),
    ],
)
def test_a_value_that_a_request_decides_counts(changes: dict[str, Any], where: list[str]) -> None:
    exchange = exchanges()[GENERATED]

    assert found(exchange, changed(exchange, **changes)) == where


@pytest.mark.parametrize(
    "changes",
    [
        {"response": "other words", "created_at": "2031-01-01T00:00:00Z"},
        {"eval_duration": 1, "load_duration": 2},
        {"done_reason": "stop", "eval_count": 3},
    ],
)
def test_a_value_that_the_model_decides_does_not_count(changes: dict[str, Any]) -> None:
    exchange = exchanges()[GENERATED]

    assert found(exchange, changed(exchange, **changes)) == []


def test_the_order_of_keys_counts() -> None:
    exchange = exchanges()[CHATTED]
    record = json.loads(exchange.response.body)
    last = {**{key: record[key] for key in record if key != "logprobs"}, "logprobs": record["logprobs"]}

    assert found(exchange, replace(exchange.response, body=json.dumps(last).encode())) == ["body in order"]


def test_an_error_in_place_of_a_reply_is_one_difference() -> None:
    exchange = exchanges()[GENERATED]

    assert found(exchange, replace(exchange.response, body=b'{"error":"no"}')) == ["body"]


def test_the_text_of_an_error_counts() -> None:
    exchange = exchanges()["023_show_missing_model"]

    assert found(exchange, changed(exchange, error="model 'nope' is not here")) == ["body.error"]


def test_a_line_end_behind_a_body_counts() -> None:
    exchange = exchanges()[GENERATED]

    assert found(exchange, replace(exchange.response, body=exchange.response.body + b"\n")) == ["end of body"]


def test_more_lines_of_a_stream_do_not_count_but_other_shapes_do() -> None:
    exchange = exchanges()[STREAMED]
    first, *rest = exchange.response.body.splitlines(keepends=True)
    more = b"".join([first, first, first, *rest])
    thinking = b"".join([first.replace(b'"done"', b'"thinking":"x","done"'), *rest])

    assert found(exchange, replace(exchange.response, body=more)) == []
    assert found(exchange, replace(exchange.response, body=thinking)) == ["more.thinking"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"\n", b"\n\n"),
        (b'"done":true', b'"done":false'),
        (b"}\n", b"}"),
    ],
)
def test_blank_lines_a_missing_end_and_lines_that_are_no_json_count(before: bytes, after: bytes) -> None:
    exchange = exchanges()[STREAMED]
    head, _, tail = exchange.response.body.rpartition(before)

    assert "order of records" in found(exchange, replace(exchange.response, body=head + after + tail))


def test_logprobs_are_as_many_as_tokens_and_their_alternatives_as_many_as_asked_for() -> None:
    exchange = exchanges()[LOGPROBS]
    lines = [json.loads(line) for line in exchange.response.body.splitlines()]
    for line in lines[:-1]:
        line["logprobs"][0]["top_logprobs"].pop()
    fewer = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()

    assert found(exchange, replace(exchange.response, body=fewer)) == ["more.logprobs[].top_logprobs"]


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        (b"data: [DONE]\n\n", b"", ["order of records"]),
        (b'"system_fingerprint":"fp_ollama"', b'"system_fingerprint":null', ["chunk.system_fingerprint"]),
        (b'"total_tokens":23', b'"total_tokens":24', ["usage.usage.total_tokens"]),
        (b'"prompt_tokens":15', b'"prompt_tokens":16', ["usage.usage.prompt_tokens", "usage.usage.total_tokens"]),
        (b"data: [DONE]", b"data:[DONE]", ["order of records"]),
        (b'"id":"chatcmpl-', b'"id":"', ["chunk.id"]),
    ],
)
def test_events_are_compared_by_kind(before: bytes, after: bytes, where: list[str]) -> None:
    exchange = exchanges()[CHUNKED]
    assert before in exchange.response.body
    body = exchange.response.body.replace(before, after)

    assert found(exchange, replace(exchange.response, body=body))[: len(where)] == where


def test_steps_are_compared_without_their_digests() -> None:
    exchange = exchanges()["440_create_files_ok"]
    other = exchange.response.body.replace(b"sha256:f02dd7", b"sha256:ffffff")
    renamed = exchange.response.body.replace(b"writing manifest", b"writing")

    assert found(exchange, replace(exchange.response, body=other)) == []
    assert found(exchange, replace(exchange.response, body=renamed)) == ["order of records"]
