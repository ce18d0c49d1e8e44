"""Calls are handed out once each, when they are closed, and nothing is lost where a reply becomes unreadable later."""

from __future__ import annotations

import json
import re

from vllama.ollama.replies import MadeCall
from vllama.worker.call_formats import CALL_FORMATS
from vllama.worker.closed_calls import ClosedCalls, Piece

FIRST, SECOND = (f'<tool_call>{{"name": "f", "arguments": {{"n": {number}}}}}</tool_call>' for number in (1, 2))


def parse(text: str) -> Piece:
    """Read all calls or, as vLLM's parser of this format does, take everything for text if one is broken."""
    try:
        made = [json.loads(call) for call in re.findall(r"<tool_call>(.*?)(?:</tool_call>|$)", text, re.DOTALL)]
    except json.JSONDecodeError:
        return Piece(text)
    calls = tuple(MadeCall(f"call_{n}", n, call["name"], call["arguments"]) for n, call in enumerate(made))
    return Piece(text.partition("<tool_call>")[0], calls=calls)


def numbers(piece: Piece | None) -> list[tuple[int, int]]:
    """Index and argument of the calls."""
    return [(call.index, call.arguments["n"]) for call in piece.calls] if piece else []


def stream(*texts: str) -> tuple[ClosedCalls, list[list[tuple[int, int]]]]:
    calls = ClosedCalls(CALL_FORMATS["Hermes2ProToolParser"], parse)
    return calls, [numbers(calls.feed(text)) for text in texts]


def test_each_call_comes_once_with_the_text_that_closes_it() -> None:
    calls, told = stream("Hm. ", FIRST[:-12], "</tool_call>", "\n" + SECOND + " ", "")
    assert told == [[], [(0, 1)], [], [(1, 2)], []]
    text = f"Hm. {FIRST}\n{SECOND} "
    assert numbers(calls.rest(text, parse(text), Piece("Hm. "), parse)) == []


def test_calls_that_one_text_closes_come_together() -> None:
    assert stream(FIRST + SECOND)[1] == [[(0, 1), (1, 2)]]


def test_a_call_that_only_the_end_completes_comes_with_the_rest() -> None:
    text = FIRST + SECOND
    calls, _ = stream(FIRST, "<tool_call>")
    assert numbers(calls.rest(text, parse(text), Piece(), parse)) == [(1, 2)]


def test_a_reply_that_becomes_unreadable_keeps_its_calls_and_loses_no_text() -> None:
    broken = '<tool_call>{"name": "f", "argum'
    calls, told = stream("Hm. ", FIRST, broken)
    said = parse("Hm. " + FIRST + broken)
    rest = calls.rest("Hm. " + FIRST + broken, said, Piece("Hm. "), parse)
    assert told[1] == [(0, 1)]
    assert rest == Piece("Hm. " + broken)


def test_calls_after_an_unreadable_part_go_on_counting() -> None:
    text = FIRST + "</tool_call>}" + SECOND
    calls, _ = stream(FIRST)
    assert numbers(calls.rest(text, Piece(text), Piece(), parse)) == [(1, 2)]


def test_what_is_no_call_is_not_handed_out() -> None:
    assert stream("<tool_call>{", "not JSON}", "</tool_call>")[1] == [[], [], []]
