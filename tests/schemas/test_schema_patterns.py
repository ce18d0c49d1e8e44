"""Patterns of strings, rewritten for grammars."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.schemas.patterns import InvalidPattern, UnenforceablePattern, any_text, language, matches

ANY = any_text().text


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^a+$", "a+"),
        ("^a", f"a{ANY}"),
        ("a$", f"{ANY}a"),
        ("a", f"{ANY}a{ANY}"),
        ("^a|b$", f"a{ANY}|{ANY}b"),
        ("^(^a$|^b$)$", "(a|b)"),
        ("(^a|b$)", f"(a{ANY}|{ANY}b)"),
        ("^(?:ab)?$", "(ab|)"),
        ("^(?<year>\\d{4})$", "([0-9]{4})"),
        ("^a+?$", "a+"),
        ("^[a-z&&-]$", "[&\\-a-z]"),
        ("^\\u0041\\x42$", "AB"),
        ("^a{x}$", "a\\{x\\}"),
        ("x*", ANY),
        ("", ANY),
        ("^[\\s\\S]*$", ANY),
    ],
)
def test_a_pattern_is_written_for_the_whole_string(pattern: str, text: str) -> None:
    assert language(pattern).text == text


def test_what_json_text_escapes_is_left_out() -> None:
    assert language('^["\\\\a\n]$').text == "a"
    assert language('^"$').is_empty


def test_a_category_of_unicode_is_a_set() -> None:
    letters = language("^\\p{Lu}$").text
    assert re.fullmatch(letters, "Ä")
    assert not re.fullmatch(letters, "ä")


@pytest.mark.parametrize(
    ("pattern", "limits", "text"),
    [("^[a-z]+$", (0, 5), "[a-z]{1,5}"), ("^[a-z]*$", (2, None), "[a-z]{2,}"), ("^(ab)+$", (0, 5), "(ab)+")],
)
def test_lengths_go_into_the_only_repetition(pattern: str, limits: tuple[int, int | None], text: str) -> None:
    assert language(pattern, *limits).text == text


@pytest.mark.parametrize("pattern", ["(a", "[a", "a)", "*a", "a**", "a{3,1}", "[z-a]", "a\\", "(?<n"])
def test_a_text_that_is_no_pattern_is_invalid(pattern: str) -> None:
    with pytest.raises(InvalidPattern):
        language(pattern)


@pytest.mark.parametrize(
    "pattern", ["(?=a)b", "(?<!a)b", "(a)\\1", "\\ba", "(?i)a", "a^b", "\\p{Emoji}", "a++", "[[:alpha:]]", "a{20000}"]
)
def test_a_construct_that_grammars_lack_is_named(pattern: str) -> None:
    with pytest.raises(UnenforceablePattern):
        language(pattern)


def test_no_pattern_takes_for_ever() -> None:
    with pytest.raises(UnenforceablePattern):
        matches("^((a+)+)+$", "a" * 5_000)


LETTERS = st.sampled_from("ab1-")
ATOMS = st.sampled_from(["a", "b", "1", "[ab]", "[^a]", "\\d", "\\w", "."])
PARTS = st.recursive(
    ATOMS,
    lambda inner: st.tuples(
        st.lists(st.tuples(inner, st.sampled_from(["", "?", "*", "+", "{2}", "{0,2}", "{2,}"])), max_size=3),
        st.sampled_from(["|", ""]),
    ).map(lambda parts: f"({parts[1].join(atom + repetition for atom, repetition in parts[0])})"),
    max_leaves=6,
)


@given(
    st.tuples(st.sampled_from(["^", ""]), PARTS, st.sampled_from(["$", ""])).map("".join), st.text(LETTERS, max_size=6)
)
def test_a_rewritten_pattern_matches_the_same_strings(pattern: str, text: str) -> None:
    found = re.search(pattern.replace("$", r"\Z"), text) is not None
    written = language(pattern)

    assert matches(pattern, text) == found
    assert (re.fullmatch(written.text, text) is not None) == found
    if found:
        assert written.least <= len(text)
        assert written.most is None or len(text) <= written.most
