"""When a structured reply is valid, as a whole and field by field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllama.bench.prompts import BadWorkload
from vllama.bench.quality import Task

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "year": {"$ref": "#/$defs/year"}, "note": {"type": "string"}},
    "required": ["city", "year"],
    "$defs": {"year": {"type": "integer", "minimum": 1000}},
}


@pytest.fixture
def task(tmp_path: Path) -> Task:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return Task.from_file(path)


@pytest.mark.parametrize(
    ("text", "valid", "fields"),
    [
        ('{"city": "Paris", "year": 1889}', True, {"city": True, "year": True, "note": True}),
        ('{"city": "Paris", "year": 12}', False, {"city": True, "year": False, "note": True}),
        ('{"city": "Paris"}', False, {"city": True, "year": False, "note": True}),
        ('{"city": "Paris", "year": 1889, "note": 3}', False, {"city": True, "year": True, "note": False}),
        ('{"city": "Paris", "ye', False, {"city": False, "year": False, "note": False}),
        ("[]", False, {"city": False, "year": False, "note": True}),
    ],
)
def test_a_reply_is_judged_as_a_whole_and_field_by_field(
    task: Task, text: str, valid: bool, fields: dict[str, bool]
) -> None:
    assert task.judge(text, 0) == (valid, fields)


def test_a_task_says_what_the_reply_to_each_of_its_prompts_should_be(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    items = [{"prompt": "capital of France?", "expect": {"city": "Paris"}}, {"prompt": "any city?"}]
    path.write_text(json.dumps({"schema": SCHEMA, "items": items}))
    task = Task.from_file(path)
    rome = '{"city": "Rome", "year": 1889}'

    assert task.prompts == ("capital of France?", "any city?")
    assert task.judge(rome, 0) == (True, {"city": False, "year": True, "note": True})
    assert task.judge(rome, 1) == (True, {"city": True, "year": True, "note": True})
    assert task.judge(rome, 2)[1]["city"] is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "unexpected end"),
        ("[]", "neither a JSON Schema nor a task"),
        ('{"type": "nonsense"}', "not a JSON Schema"),
        ('{"schema": {}, "items": [{"question": "?"}]}', "a `prompt` each"),
        ('{"schema": 3, "items": [{"prompt": "?"}]}', "`schema` must be a JSON Schema"),
    ],
)
def test_a_file_that_is_neither_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "task.json"
    path.write_text(content)

    with pytest.raises(BadWorkload, match=message):
        Task.from_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadWorkload, match=r"none\.json"):
        Task.from_file(tmp_path / "none.json")
