"""Reply records, against what an Ollama 0.24.0 wrote (contract §1.2, §1.3)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from recorded_exchanges import ANSWERED

from vllama.ollama.replies import ChatReplies, Clock, GenerateReplies, MadeCall, Replies, Timings, TokenLogprob

FIGURES = (
    "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
)  # fmt: skip


class ClockAt(Clock):
    """Stands still at a recorded time."""

    __slots__ = ("_at",)

    def __init__(self, at: str) -> None:
        super().__init__()
        self._at = at.encode()

    def now(self) -> bytes:
        return self._at


def logprob(recorded: dict[str, Any]) -> TokenLogprob:
    top = tuple(map(logprob, recorded.get("top_logprobs", ())))
    return TokenLogprob(recorded["token"], recorded["logprob"], bytes(recorded["bytes"]), top)


def call(recorded: dict[str, Any]) -> MadeCall:
    return MadeCall(recorded["id"], **recorded["function"])


def written_again(path: str, recorded: dict[str, Any]) -> bytes:
    """The record that we write where Ollama wrote this one."""
    clock = ClockAt(recorded["created_at"])
    replies: Replies
    if path == "/api/chat":
        replies, said = ChatReplies(recorded["model"], clock), recorded["message"]
    else:
        replies, said = GenerateReplies(recorded["model"], clock), recorded
    text = said["content" if said is not recorded else "response"]
    thinking, calls = said.get("thinking", ""), [call(item) for item in said.get("tool_calls", ())]
    logprobs = [logprob(item) for item in recorded.get("logprobs", ())]
    if "_debug_info" in recorded:
        return replies.rendered(recorded["_debug_info"]["rendered_template"])
    if not recorded["done"]:
        return replies.delta(text, logprobs, thinking=thinking, calls=calls)
    timings = Timings(**{name: recorded.get(name, 0) for name in FIGURES}) if "total_duration" in recorded else None
    context = recorded.get("context", ())
    return replies.final(
        recorded["done_reason"], timings, text=text, thinking=thinking, calls=calls, context=context, logprobs=logprobs
    )


def keys(value: Any) -> Any:
    """Objects as lists of pairs: with the order of their keys."""
    return json.loads(value, object_pairs_hook=list)


@pytest.mark.parametrize("record", sorted(ANSWERED))
def test_a_record_has_the_keys_and_values_of_ollamas(record: str) -> None:
    exchange = ANSWERED[record]
    for line in exchange.answered.splitlines():
        assert json.loads(written_again(exchange.path, json.loads(line))) == json.loads(line)


@pytest.mark.parametrize("record", sorted(ANSWERED))
def test_the_keys_of_a_record_come_in_ollamas_order(record: str) -> None:
    exchange = ANSWERED[record]
    for line in exchange.answered.splitlines():
        assert keys(written_again(exchange.path, json.loads(line))) == keys(line)


def figures(**changed: int) -> Timings:
    return Timings(**{**dict.fromkeys(FIGURES, 7), **changed})


@pytest.fixture(params=[GenerateReplies, ChatReplies])
def replies(request: pytest.FixtureRequest) -> Replies:
    make: Callable[[str, Clock], Replies] = request.param
    return make("smollm2:135m", Clock())


@pytest.mark.parametrize("absent", FIGURES)
@pytest.mark.parametrize("value", [0, -1])
def test_a_figure_of_zero_is_left_out(replies: Replies, absent: str, value: int) -> None:
    record = json.loads(replies.final("stop", figures(**{absent: value})))
    assert set(FIGURES) - record.keys() == {absent}


@pytest.mark.parametrize("cached", [0, 16])
def test_cached_tokens_follow_those_of_the_prompt_and_zero_is_a_value(replies: Replies, cached: int) -> None:
    """As recorded with Ollama 0.34.1."""
    made = Timings(**dict.fromkeys(FIGURES, 7), prompt_eval_cached_count=cached)
    record = json.loads(replies.final("stop", made))
    assert record["prompt_eval_cached_count"] == cached
    names = list(record)
    assert names[names.index("prompt_eval_count") + 1] == "prompt_eval_cached_count"


def test_unknown_cached_tokens_are_left_out(replies: Replies) -> None:
    assert "prompt_eval_cached_count" not in json.loads(replies.final("stop", figures()))


def test_a_load_or_unload_has_no_figures(replies: Replies) -> None:
    assert not json.loads(replies.final("load")).keys() & set(FIGURES)


def test_a_record_in_the_middle_says_nothing_of_the_end(replies: Replies) -> None:
    record = json.loads(replies.delta("text"))
    assert record["done"] is False
    assert record.keys() <= {"model", "created_at", "response", "message", "done"}


def test_context_is_there_only_where_there_is_some() -> None:
    replies = GenerateReplies("m", Clock())
    assert json.loads(replies.final("stop", figures(), context=[1, 2]))["context"] == [1, 2]
    assert "context" not in json.loads(replies.final("stop", figures()))


def test_thinking_and_calls_are_there_only_where_there_are_some() -> None:
    replies = ChatReplies("m", Clock())
    for record in (replies.delta("a"), replies.final("stop", figures(), text="a")):
        assert json.loads(record)["message"] == {"role": "assistant", "content": "a"}


def test_the_calls_of_a_reply_are_counted_and_their_arguments_are_objects_in_the_models_order() -> None:
    calls = [MadeCall("call_a", 0, "f", {"z": 1, "a": [None]}), MadeCall("call_b", 1, "g", {})]
    message = json.loads(ChatReplies("m", Clock()).delta("", calls=calls))["message"]
    assert [(made["id"], made["function"]["index"]) for made in message["tool_calls"]] == [("call_a", 0), ("call_b", 1)]
    assert list(message["tool_calls"][0]["function"]["arguments"].items()) == [("z", 1), ("a", [None])]


def test_an_alternative_has_no_alternatives_of_its_own(replies: Replies) -> None:
    token = TokenLogprob(" a", -0.5, b" a", (TokenLogprob(" a", -0.5, b" a"), TokenLogprob("é", -1.5, "é".encode())))
    [written] = json.loads(replies.delta(" a", [token]))["logprobs"]
    assert written == {
        "token": " a",
        "logprob": -0.5,
        "bytes": [32, 97],
        "top_logprobs": [
            {"token": " a", "logprob": -0.5, "bytes": [32, 97]},
            {"token": "é", "logprob": -1.5, "bytes": [195, 169]},
        ],
    }


@given(model=st.text(), text=st.text(), prompt=st.text())
@example(model='a"b\\c', text="\u2028</script>\n\r\t\0\x7f\ufffd", prompt="<|im_start|>")
def test_any_text_is_written_as_valid_json_on_one_line(model: str, text: str, prompt: str) -> None:
    calls = [MadeCall(text, 0, text, {text: text})]
    for replies in (GenerateReplies(model, Clock()), ChatReplies(model, Clock())):
        for record in (
            replies.delta(text, thinking=text, calls=calls),
            replies.final("stop", figures(), text=text, thinking=text, calls=calls),
            replies.rendered(prompt),
        ):
            assert b"\n" not in record
            assert json.loads(record)["model"] == model
        assert text_of(replies.delta(text)) == text
        assert text_of(replies.final("length", text=text)) == text
        assert json.loads(replies.rendered(prompt))["_debug_info"]["rendered_template"] == prompt


def text_of(record: bytes) -> str:
    wire = json.loads(record)
    return str(wire["response"] if "response" in wire else wire["message"]["content"])


def test_a_time_is_rfc_3339_in_utc_with_nine_digits_and_is_now() -> None:
    before = datetime.now(UTC)
    written = Clock().now().decode()
    after = datetime.now(UTC)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", written)
    moment = datetime.fromisoformat(written[:26] + "+00:00")
    assert before - timedelta(microseconds=1) <= moment <= after


@given(ns=st.lists(st.integers(0, 4_102_444_800 * 10**9), min_size=1, max_size=4))
@example(ns=[1_000_000_000, 1_999_999_999, 2_000_000_000, 2_000_000_001])
def test_a_clock_that_remembers_its_second_still_tells_the_time(ns: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        for moment in ns:
            patch.setattr("time.time_ns", lambda moment=moment: moment)
            second = datetime.fromtimestamp(moment // 10**9, UTC)
            assert clock.now().decode() == f"{second:%Y-%m-%dT%H:%M:%S}.{moment % 10**9:09d}Z"
