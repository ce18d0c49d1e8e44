"""Calls as plain JSON where the family's format wants tags: which replies are calls, and when text is held back."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.protocol.environment import UNTAGGED_CALLS
from vllama.worker.offered_tools import OfferedTools
from vllama.worker.untagged_calls import UntaggedCalls

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city"],
}
TOOLS = OfferedTools({"get_weather": WEATHER, "get_time": {}, "get_whether": {"type": "object", "properties": {}}})
ONE = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
OTHER = '{"name": "get_weather", "arguments": {"city": "Zürich {\\"}\\"}", "days": 3}}'
CLOCK = '{"name": "get_time", "arguments": {}}'
PARIS = ("get_weather", {"city": "Paris"})
ZURICH = ("get_weather", {"city": 'Zürich {"}"}', "days": 3})
MIDNIGHT: tuple[str, dict[str, Any]] = ("get_time", {})

CALLS = {
    ONE: [PARIS],
    f"\n {ONE}\n": [PARIS],
    ONE.replace("arguments", "parameters"): [PARIS],
    ONE.replace('"name"', '"function"'): [PARIS],
    ONE.replace('"name"', '"tool_name"'): [PARIS],
    '{"arguments": {"city": "Paris"}, "name": "get_weather"}': [PARIS],
    f'{{"type": "function", "function": {ONE}}}': [PARIS],
    f'{{"id": "call_1", "type": "function", "function": {ONE}}}': [PARIS],
    '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}': [PARIS],
    f"{{{ONE}}}": [PARIS],
    f"```json\n{ONE}\n```": [PARIS],
    f"```\n{ONE}\n```\n": [PARIS],
    f"```json\n{ONE}": [PARIS],
    f"```json\n[{ONE}, {OTHER}]\n```": [PARIS, ZURICH],
    f"<tool_call>\n{{{ONE}}}\n</tool_call>": [PARIS],
    f"<tools>\n{ONE}\n</tools>": [PARIS],
    f"[{ONE}]": [PARIS],
    f"[{ONE}, {OTHER}]": [PARIS, ZURICH],
    f"{ONE}\n{OTHER}": [PARIS, ZURICH],
    f"{ONE};{CLOCK}": [PARIS, MIDNIGHT],
    f"```json\n{ONE}\n```\n```json\n{CLOCK}\n```": [PARIS, MIDNIGHT],
    json.dumps(json.loads(OTHER), indent=4): [ZURICH],
}

TEXTS = [
    "",
    "\n",
    "It is sunny.",
    f"I will look: {ONE}",
    f"{ONE}\nI have asked.",
    f"```json\n{ONE}\n```\nThis calls the tool.",
    f"Here:\n```json\n{ONE}\n```",
    f"```python\n{ONE}\n```",
    ONE[:-1],
    ONE + "}",
    f"[{ONE}",
    f"[{ONE},]",
    "[]",
    "{}",
    "[1, 2]",
    "```",
    "```json\n```",
    "{not json}",
    '{"city": "Oslo", "degrees": 7}',
    '{"name": "Tom", "arguments": {"city": "Paris"}}',
    '{"name": "get_weath", "arguments": {"city": "Paris"}}',
    '{"name": "get_weather"}',
    '{"name": "get_weather", "arguments": "Paris"}',
    '{"name": "get_weather", "arguments": ["Paris"]}',
    '{"name": "get_weather", "arguments": null}',
    '{"name": "get_weather", "arguments": {}}',
    '{"name": "get_weather", "arguments": {"city": 7}}',
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": "3"}}',
    '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "K"}}',
    '{"name": "get_weather", "arguments": {"city": "Paris", "country": "France"}}',
    '{"name": "get_weather", "arguments": {"city": "Paris"}, "parameters": {"city": "Paris"}}',
    '{"name": "get_weather", "description": "The weather", "arguments": {"city": "Paris"}}',
    '{"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}',
    '{"name": "get_time", "arguments": {"zone": "CET"}}',
    '{"type": "object", "properties": {"city": {"type": "string"}}}',
    f'{{"type": "tool", "function": {ONE}}}',
    f"[{ONE}, 7]",
    f"{ONE}\n" + '{"city": "Oslo"}',
    '{"name": "get_weather", "arguments": {"city": "Par\nis"}}',
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 03}}',
    '{"name": "get_weather", "arguments": ' + '{"a":' * 100 + "1" + "}" * 101,
]


def said(pieces: list[str], tools: OfferedTools = TOOLS) -> tuple[str, list[Any]]:
    """Return the text and the calls of a reply that comes in these pieces."""
    reader, text, calls = UntaggedCalls(tools), "", list[Any]()
    for index, piece in enumerate(pieces):
        new, found = reader.feed(piece, called=False, finished=index == len(pieces) - 1)
        text += new
        calls += found
    return text, calls


@pytest.mark.parametrize("text", CALLS)
def test_a_reply_of_nothing_but_fitting_json_is_calls(text: str) -> None:
    assert said([text]) == ("", CALLS[text])


@pytest.mark.parametrize("text", TEXTS)
def test_everything_else_is_text_and_none_of_it_is_lost(text: str) -> None:
    assert said([text]) == (text, [])


@pytest.mark.parametrize("text", [*CALLS, *TEXTS])
def test_a_stream_says_what_the_whole_reply_says(text: str) -> None:
    assert said([*text, ""]) == said([text])


@given(
    st.lists(st.sampled_from([*ONE.split('"'), '"', "\\", "{", "}", "[", "]", "```", "json", "\n", ",", ONE, CLOCK]))
)
def test_a_reply_is_either_its_own_text_or_only_calls_wherever_its_pieces_end(pieces: list[str]) -> None:
    text = "".join(pieces)
    whole = said([text])
    assert said([*pieces, ""]) == whole
    assert said([*text, ""]) == whole
    assert whole[0] == ("" if whole[1] else text)


@pytest.mark.parametrize(
    ("text", "impossible"),
    [
        ("Hello", "H"),
        ("  Hello", "H"),
        ('{"city": 1}', "c"),
        ('{"name": "Tom"}', "T"),
        ('{"name": "get_where"}', "r"),
        ('{"name": "get_weather", "description": 1}', "d"),
        ('{"name": 7}', "7"),
        ("[1, 2]", "1"),
        ("```python", "p"),
        ("```json\n[\n  7]", "7"),
        ('{"name": "get_weather", "arguments": 7}', "7"),
        (ONE + "\nso", "s"),
        ('{"name": "get_weather", "arguments": {"city": 7}} ', "}}"),
        ('{"name": "get_weather", "arguments": {"city" 7}}', "7"),
    ],
)
def test_text_is_sent_the_moment_it_cannot_become_a_call(text: str, impossible: str) -> None:
    end = text.rindex(impossible) + len(impossible)
    reader = UntaggedCalls(TOOLS)
    for char in text[: end - 1]:
        assert reader.feed(char, called=False, finished=False) == ("", ())
    assert reader.feed(text[end - 1], called=False, finished=False) == (text[:end], ())
    assert reader.feed("more", called=False, finished=False) == ("more", ())


def test_after_a_call_in_the_family_s_own_format_json_is_text() -> None:
    reader = UntaggedCalls(TOOLS)
    assert reader.feed("\n", called=False, finished=False) == ("", ())
    assert reader.feed("", called=True, finished=False) == ("\n", ())
    assert reader.feed(ONE, called=False, finished=True) == (ONE, ())


@pytest.mark.parametrize(
    ("schema", "arguments", "fits"),
    [
        ({}, {}, True),
        ({"type": "object"}, {"a": 1}, False),
        ({"type": "object", "additionalProperties": True}, {"a": 1}, True),
        ({"type": "object", "additionalProperties": {"type": "string"}}, {"a": 1}, False),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"required": ["b"]}}}, {"b": 1}, True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"required": ["b"]}}}, {"a": 1}, False),
        ({"$ref": "#"}, {"a": 1}, False),
        ({"$ref": "http://localhost/schema"}, {"a": 1}, False),
        ({"properties": {"a": {"type": "no type"}}}, {"a": 1}, False),
        ({"properties": {"a": {"pattern": "^[0-9]+$"}}}, {"a": "17"}, True),
        ({"properties": {"a": {"pattern": "^[0-9]+$"}}}, {"a": "x"}, False),
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 60 + "b"}, False),
        ({"patternProperties": {"^a": {}}}, {"a": 1}, False),
        (True, {}, False),
    ],
)
def test_arguments_fit_where_the_schema_admits_them_and_declares_their_names(
    schema: Any, arguments: Any, *, fits: bool
) -> None:
    found = OfferedTools({"f": schema}).call({"name": "f", "arguments": arguments})
    assert (found is not None) is fits


def test_a_schema_whose_references_multiply_is_given_up() -> None:
    definitions = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)} | {"a40": {}}
    tools = OfferedTools({"f": {"$ref": "#/$defs/a0", "$defs": definitions}})
    assert tools.call({"name": "f", "arguments": {}}) is None


ASKED_FOR_JSON = {"role": "user", "content": "Describe Oslo in JSON."}


def a_request(**fields: Any) -> Any:
    """Return what of vLLM's requests is looked at."""
    function = SimpleNamespace(name="get_weather", parameters=WEATHER)
    tools = [SimpleNamespace(type="function", function=function)]
    return SimpleNamespace(**{"tools": tools, "tool_choice": "auto", "messages": [], **fields})


@pytest.mark.parametrize(
    ("fields", "reads"),
    [
        ({}, True),
        ({"tool_choice": None}, True),
        ({"response_format": SimpleNamespace(type="text")}, True),
        ({"text": SimpleNamespace(format=None)}, True),
        ({"structured_outputs": SimpleNamespace(json=None, structural_tag="…")}, True),
        ({"tools": [SimpleNamespace(type="function", name="get_weather", parameters=WEATHER)]}, True),
        ({"messages": [ASKED_FOR_JSON, {"role": "user", "content": "What is the weather?"}]}, True),
        ({"messages": [{"role": "system", "content": "Tools are JSON."}]}, True),
        ({"messages": [ASKED_FOR_JSON]}, False),
        ({"messages": [ASKED_FOR_JSON, {"role": "tool", "content": "7 degrees"}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "as json"}]}]}, False),
        ({"messages": [{"role": "user", "content": None}]}, True),
        ({"messages": None, "input": "Hello"}, True),
        ({"messages": None, "input": "Answer in JSON."}, False),
        ({"messages": None, "input": [SimpleNamespace(role="user", content="Answer in JSON.")]}, False),
        ({"tools": None}, False),
        ({"tools": [SimpleNamespace(type="custom", name="get_weather")]}, False),
        ({"tool_choice": "none"}, False),
        ({"tool_choice": "required"}, False),
        ({"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, False),
        ({"response_format": SimpleNamespace(type="json_object")}, False),
        ({"text": SimpleNamespace(format=SimpleNamespace(type="json_schema"))}, False),
        ({"structured_outputs": SimpleNamespace(json={"type": "object"})}, False),
    ],
)
def test_only_where_tools_were_offered_freely_and_neither_json_nor_a_format_was_asked_for(
    fields: dict[str, Any], *, reads: bool
) -> None:
    reader = UntaggedCalls.for_request(a_request(**fields))
    assert (reader is not None) is reads
    if reader is not None:
        assert reader.feed(ONE, called=False, finished=True) == ("", [PARIS])


@pytest.mark.parametrize(("stated", "reads"), [("0", False), ("1", True), ("", True)])
def test_the_operator_can_turn_it_off(monkeypatch: pytest.MonkeyPatch, stated: str, *, reads: bool) -> None:
    monkeypatch.setenv(UNTAGGED_CALLS, stated)
    assert (UntaggedCalls.for_request(a_request()) is not None) is reads


@pytest.mark.timeout(20)
def test_each_character_of_a_long_call_is_read_once() -> None:
    call = '{"name": "get_weather", "arguments": {"city": "' + "x" * 300_000 + '"}}'
    text, calls = said([call[at : at + 4] for at in range(0, len(call), 4)])
    assert (text, len(calls)) == ("", 1)
