"""White space of replies on `/v1`: what Ollama's clients get of what a model writes, whole and in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.worker.white_space import WhiteSpace

Piece = tuple[str | None, str, bool]
"""Thinking, text, and whether a call follows."""


def fed(pieces: list[Piece], *, may_call: bool = True) -> tuple[str, str]:
    """Return the thinking and text of a reply that comes in these pieces."""
    remover = WhiteSpace(may_call=may_call)
    said = [
        remover.feed(thinking, text, called=called, finished=index == len(pieces) - 1)
        for index, (thinking, text, called) in enumerate(pieces)
    ]
    return "".join(thinking for thinking, _ in said), "".join(text for _, text in said)


@pytest.mark.parametrize("may_call", [False, True])
@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([("\nHm.\n", "\n\nHello", False)], ("Hm.\n", "Hello")),
        ([("\n", "", False), ("Hm.\n", "", False), (None, "\n\n", False), (None, "Hi", False)], ("Hm.\n", "Hi")),
        ([("\n\n", "", False), (None, "\n\nHello\n", False)], ("", "Hello\n")),
        ([("", "\n\nHello", False)], ("", "Hello")),
        ([(None, "\n", False), ("Hm.", "", False), (None, "Hi", False)], ("Hm.", "Hi")),
        ([("One.", "", False), ("\n\nTwo.", "", False)], ("One.\n\nTwo.", "")),
    ],
)
def test_no_blanks_stand_before_thinking_and_after_it(
    pieces: list[Piece], said: tuple[str, str], *, may_call: bool
) -> None:
    assert fed(pieces, may_call=may_call) == said


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([(None, "\n\n", True)], ""),
        ([(None, "\n", False), (None, "\n", False), (None, "", True)], ""),
        ([(None, "I will look.\n\n", True)], "I will look."),
        ([(None, "I will look.", False), (None, "\n\n", False), (None, "", True), (None, "\n", False)], "I will look."),
        ([(None, "", True), (None, "\n", False), (None, "", True), (None, "\n\nDone.", False)], "Done."),
        ([("Hm.", "", False), (None, "\n\n", False), (None, "", True)], ""),
    ],
)
def test_no_blanks_stand_before_or_after_calls(pieces: list[Piece], said: str) -> None:
    assert fed(pieces)[1] == said


@pytest.mark.parametrize("may_call", [False, True])
@pytest.mark.parametrize("text", ["\n\nHello", "  a\n\nb \n", " ", "", "a"])
def test_a_reply_without_thinking_and_calls_stays_as_it_is(text: str, *, may_call: bool) -> None:
    assert fed([(None, text, False)], may_call=may_call)[1] == text
    assert fed([(None, character, False) for character in text] or [(None, "", False)], may_call=may_call)[1] == text


@given(st.text("a \n", max_size=8), st.text("b \n", max_size=8), st.booleans(), st.data())
def test_the_pieces_of_a_reply_make_no_difference(thinking: str, text: str, called: bool, data: st.DataObject) -> None:
    whole = fed([(thinking, text, called)])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    pieces: list[Piece] = [(character, "", False) for character in thinking] or [("", "", False)]
    pieces += [(None, part, False) for part in parts]
    assert fed([*pieces, (None, "", called)]) == whole


def test_text_is_not_held_longer_than_its_blanks() -> None:
    remover = WhiteSpace(may_call=True)
    assert remover.feed(None, "Hello ", called=False, finished=False) == ("", "Hello")
    assert remover.feed(None, "you", called=False, finished=False) == ("", " you")
