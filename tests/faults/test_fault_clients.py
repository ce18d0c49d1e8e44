"""The campaign's clients know a complete reply, a proper error, and what is neither."""

from __future__ import annotations

import random

import pytest

from faults.campaign import Result, as_json, drawn, from_json, table
from faults.clients import Ask, Outcome, judge
from faults.kinds import KINDS

NATIVE, OPENAI = Ask("/api/chat", True, 4), Ask("/v1/chat/completions", True, 4)
NATIVE_WHOLE, OPENAI_WHOLE = Ask("/api/chat", False, 4), Ask("/v1/chat/completions", False, 4)
NDJSON, SSE = "application/x-ndjson", "text/event-stream; charset=utf-8"
CHUNK = 'data: {"choices":[{"finish_reason":null}]}'
LAST = 'data: {"choices":[{"finish_reason":"length"}]}'


@pytest.mark.parametrize(
    ("ask", "status", "content_type", "lines", "outcome"),
    [
        (NATIVE, 200, NDJSON, ['{"done":false}', '{"done":true}'], Outcome.COMPLETE),
        (NATIVE, 200, NDJSON, ['{"done":false}', '{"error":"died"}'], Outcome.ERROR),
        (NATIVE, 200, NDJSON, ['{"done":false}'], Outcome.IMPROPER),
        (NATIVE, 200, NDJSON, ['{"done":false}', '{"do'], Outcome.IMPROPER),
        (NATIVE, 200, NDJSON, ['{"error":"died"}', '{"done":true}'], Outcome.IMPROPER),
        (NATIVE, 200, NDJSON, [], Outcome.IMPROPER),
        (NATIVE, 500, "application/json", ['{"error":"died"}'], Outcome.ERROR),
        (NATIVE, 500, "application/json", ['{"error":"two\\nlines"}'], Outcome.IMPROPER),
        (NATIVE, 500, "application/json", ['{"error":{"message":"died"}}'], Outcome.IMPROPER),
        (NATIVE, 500, "text/plain", ["Internal Server Error"], Outcome.IMPROPER),
        (NATIVE_WHOLE, 200, "application/json", ['{"done":true}'], Outcome.COMPLETE),
        (NATIVE_WHOLE, 200, "application/json", ['{"done":false}'], Outcome.IMPROPER),
        (NATIVE_WHOLE, 503, "application/json", ['{"error":"busy"}'], Outcome.ERROR),
        (OPENAI, 200, SSE, [CHUNK, "", LAST, "", "data: [DONE]", ""], Outcome.COMPLETE),
        (OPENAI, 200, SSE, [CHUNK, "", 'data: {"error":{"message":"died"}}', "", "data: [DONE]"], Outcome.ERROR),
        (OPENAI, 200, SSE, [CHUNK, ""], Outcome.IMPROPER),
        (OPENAI, 200, SSE, [CHUNK, "", "data: [DONE]"], Outcome.IMPROPER),
        (OPENAI, 200, NDJSON, [LAST, "", "data: [DONE]"], Outcome.IMPROPER),
        (OPENAI_WHOLE, 200, "application/json", ['{"choices":[{"finish_reason":"stop"}]}'], Outcome.COMPLETE),
        (OPENAI_WHOLE, 500, "application/json", ['{"error":{"message":"died"}}'], Outcome.ERROR),
        (OPENAI_WHOLE, 500, "application/json", ['{"error":"died"}'], Outcome.IMPROPER),
    ],
)
def test_a_reply_is_judged_by_its_format(
    ask: Ask, status: int, content_type: str, lines: list[str], outcome: Outcome
) -> None:
    assert judge(ask, status, content_type, lines).outcome is outcome


def test_what_an_error_said_is_kept() -> None:
    assert judge(NATIVE, 500, "application/json", ['{"error":"died"}']).said == "died"


@pytest.mark.parametrize("number", [1, 5, len(KINDS), 40, 100])
def test_a_campaign_has_as_many_faults_as_asked_for_and_each_kind_where_there_is_room(number: int) -> None:
    kinds = drawn(number, random.Random(1))
    assert len(kinds) == number
    assert len({kind.name for kind in kinds}) == min(number, len(KINDS))


def test_the_weights_are_those_of_a_hundred() -> None:
    kinds = drawn(100, random.Random(1))
    assert {kind.name: kinds.count(kind) for kind in KINDS} == {kind.name: kind.weight for kind in KINDS}


def test_a_seed_decides_the_order() -> None:
    assert drawn(30, random.Random(1)) == drawn(30, random.Random(1)) != drawn(30, random.Random(2))


FINE = Result("clients leave", {"complete": 7, "left": 3}, (), 1.0)


def test_a_fault_is_fine_when_nobody_was_let_down_and_nothing_is_left() -> None:
    assert FINE.is_fine


@pytest.mark.parametrize(
    "result",
    [
        Result("clients leave", {"hung": 1}, (), 1.0),
        Result("clients leave", {"improper": 1}, (), 1.0),
        Result("clients leave", {}, (), None),
        Result("clients leave", {}, (), 1.0, orphans=("7 EngineCore",)),
        Result("clients leave", {}, (), 1.0, files=("1.sock",)),
        Result("clients leave", {}, (), 1.0, leases=1),
        Result("clients leave", {}, (), 1.0, running=1),
        Result("clients leave", {}, (), 1.0, trouble="it could not be injected"),
    ],
)
def test_anything_else_is_not(result: Result) -> None:
    assert not result.is_fine


def test_the_table_sums_up_by_kind() -> None:
    other = Result("API server hangs mid-stream", {"error": 6, "complete": 1}, ("died",), 12.5)
    heads, _, *rows = table([FINE, FINE, other])
    assert heads.startswith("| Fault | n | complete | proper errors | left |")
    assert rows == [
        "| API server hangs mid-stream | 1 | 1 | 6 | 0 | 0 | 0 | 0 | 0 | 0 | 12.5 s | 12.5 s |",
        "| clients leave | 2 | 14 | 0 | 6 | 0 | 0 | 0 | 0 | 0 | 1.0 s | 1.0 s |",
        "| all | 3 | 15 | 6 | 6 | 0 | 0 | 0 | 0 | 0 | 1.0 s | 12.5 s |",
    ]


def test_results_come_back_from_a_file_as_they_were() -> None:
    assert from_json(as_json([FINE])) == [FINE]
