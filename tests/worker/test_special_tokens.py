"""Special tokens around a text: those that the tokenizer adds, and never twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vllama.worker.special_tokens import SpecialTokens


class Tokenizer:
    """One token for each character, between these special tokens."""

    def __init__(self, before: str = "", after: str = "") -> None:
        self.before, self.after = before.split(), after.split()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = [ord(character) for character in text]
        if not add_special_tokens:
            return ids
        return [*range(1, 1 + len(self.before)), *ids, *range(20, 20 + len(self.after))]

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.after[number - 20] if number >= 20 else self.before[number - 1] for number in ids]


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [("", "", "Hello"), ("<s>", "", "<s>Hello"), ("[gMASK] <sop>", "</s>", "[gMASK]<sop>Hello</s>")],
)
def test_a_text_gets_the_special_tokens_that_it_lacks(before: str, after: str, whole: str) -> None:
    special = SpecialTokens(Tokenizer(before, after))
    assert special.added_to("Hello") == whole
    assert special.added_to(whole) == whole
    assert special.removed_from(whole) == "Hello"
    assert special.removed_from("Hello") == "Hello"


def test_token_ids_get_the_special_tokens_that_they_lack() -> None:
    assert SpecialTokens(Tokenizer()).added_to_ids([72]) == [72]
    special = SpecialTokens(Tokenizer("<s>", "</s>"))
    assert special.added_to_ids([72]) == special.added_to_ids([1, 72, 20]) == [1, 72, 20]


def test_only_one_of_a_client_s_special_tokens_stands_for_the_tokenizer_s() -> None:
    assert SpecialTokens(Tokenizer("<s>")).removed_from("<s><s>Hello") == "<s>Hello"


def test_token_ids_begin_with_special_tokens_only_if_there_are_any() -> None:
    assert SpecialTokens(Tokenizer("<s>")).begin([1, 72])
    assert not SpecialTokens(Tokenizer("<s>")).begin([72, 1])
    assert not SpecialTokens(Tokenizer("<s>")).begin([])
    assert not SpecialTokens(Tokenizer()).begin([72])
