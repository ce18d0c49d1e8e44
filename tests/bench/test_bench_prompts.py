"""Where prompts come from, and that each request has a beginning of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pybase64
import pytest

from vllama.bench.prompts import BadWorkload, PromptSource


def test_the_same_number_is_the_same_prompt_in_every_process() -> None:
    assert PromptSource(words=5, salt="a").open()[7] == PromptSource(words=5, salt="a").open()[7]


def test_every_prompt_begins_with_words_of_its_own() -> None:
    prompts = PromptSource(salt="a").open()
    other = PromptSource(salt="b").open()
    beginnings = {tuple(p[i].text.split()[:9]) for p in (prompts, other) for i in range(500)}

    assert len(beginnings) == 1000


def test_prefixes_are_left_out_where_that_is_asked_for() -> None:
    prompts = PromptSource(words=3, fresh_prefix=False).open()

    assert prompts[0] == prompts[99]


def test_a_word_more_is_a_word_more() -> None:
    lengths = [len(PromptSource(words=n).open()[0].text.split()) for n in (0, 1, 100)]

    assert [length - lengths[0] for length in lengths] == [0, 1, 100]


def test_one_prompt_a_line_in_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("first\n\nsecond\n")
    prompts = PromptSource(str(tmp_path / "p.txt"), fresh_prefix=False).open()

    assert [prompts[i].text for i in range(3)] == ["first", "second", "first"]


SHAREGPT = {"id": "x", "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "hello"}]}
MESSAGES = {"messages": [{"role": "user", "content": "good day"}]}


@pytest.mark.parametrize("as_array", [True, False])
def test_conversations_give_what_the_person_said_first(tmp_path: Path, as_array: bool) -> None:
    records = [SHAREGPT, MESSAGES, {"prompt": "plain"}, {"conversations": []}]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(records) if as_array else "\n".join(map(json.dumps, records)))
    prompts = PromptSource(str(path), fresh_prefix=False).open()

    assert [prompts[i].text for i in range(len(prompts))] == ["hello", "good day", "plain"]


def test_a_fresh_prefix_comes_before_a_files_prompt_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("only\n")
    first, second = (PromptSource(str(tmp_path / "p.txt")).open()[i].text for i in (0, 1))

    assert first.endswith("\n\nonly")
    assert second.endswith("\n\nonly")
    assert first != second


def test_a_directory_gives_its_images(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"B")
    (tmp_path / "a.JPG").write_bytes(b"A")
    (tmp_path / "notes.md").write_text("no image")
    prompts = PromptSource(str(tmp_path)).open()

    assert [prompts[i].images for i in range(2)] == [(pybase64.b64encode(b).decode(),) for b in (b"A", b"B")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n", "no prompt"),
        ("p.jsonl", '{"prompt":"a"}\nnope\n', "line 2: not JSON"),
        ("p.jsonl", '{"question":"a"}\n', "line 1: neither"),
    ],
)
def test_what_has_no_prompts_is_refused_and_the_place_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(BadWorkload, match=message):
        PromptSource(str(tmp_path / name)).open()


def test_a_missing_file_and_an_empty_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadWorkload, match=os.strerror(2)):
        PromptSource(str(tmp_path / "none")).open()
    with pytest.raises(BadWorkload, match="no image"):
        PromptSource(str(tmp_path)).open()
