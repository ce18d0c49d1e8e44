"""Prompts that cannot fit are seen by their characters, and cut before they are tokenised."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from llama_cpp_sources import NAMES, keys, recorded
from tokenizers import Tokenizer

from vllama.errors import PromptTooLong
from vllama.ollama.requests import GenerateRequest
from vllama.store.gguf.tokenizer import build_tokenizer
from vllama.worker.prompt_length import longest_token, newest_messages, shortened_request, without_middle

MOST, PLACES = 100, 10


def request(**fields: Any) -> GenerateRequest:
    return replace(GenerateRequest.parse(b'{"model":"m","prompt":"hi"}'), **fields)


def messages(*texts: str, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for text in texts]


def test_a_prompt_that_may_fit_is_left_alone() -> None:
    asked = request(prompt="x" * 100)
    assert shortened_request(asked, MOST) is asked
    some = messages("a" * 50, "b" * 50)
    assert newest_messages(some, MOST, PLACES) is some


@pytest.mark.parametrize("forbidden", ["truncate", "shift"])
def test_a_prompt_that_cannot_fit_is_refused_where_it_must_not_be_cut(forbidden: str) -> None:
    with pytest.raises(PromptTooLong):
        shortened_request(request(prompt="x" * 101, **{forbidden: False}), MOST)


def test_of_a_long_prompt_both_ends_are_kept_that_a_cut_may_keep() -> None:
    text = "a" * 150 + "b" * 1000 + "c" * 150
    assert shortened_request(request(prompt=text), MOST).prompt == "a" * 100 + "c" * 100
    assert without_middle("x" * 200, MOST) == "x" * 200


def test_the_newest_messages_stay_and_one_beyond_the_room() -> None:
    kept = newest_messages(messages(*(str(number) * 40 for number in range(8))), MOST, PLACES)
    assert [message["content"][0] for message in kept] == ["5", "6", "7"]


def test_no_more_messages_stay_than_tokens_fit() -> None:
    kept = newest_messages(messages(*[""] * 1000), MOST, PLACES)
    assert len(kept) == PLACES


def test_system_messages_stay_wherever_they_are() -> None:
    chat = messages("be kind", role="system") + messages("x" * 90, "y" * 90) + messages("brief", role="system")
    kept = newest_messages([*chat, *messages("z" * 90)], MOST, PLACES)
    assert [message["content"][:1] for message in kept] == ["b", "y", "b", "z"]


@pytest.mark.parametrize("system", [["x" * 300], [""] * 20], ids=["long", "many"])
def test_system_messages_that_cannot_fit_are_refused(system: list[str]) -> None:
    with pytest.raises(PromptTooLong):
        newest_messages(messages(*system, role="system") + messages("x" * 90), MOST, PLACES)


def test_the_last_message_loses_its_middle_and_keeps_its_images() -> None:
    parts = [{"type": "text", "text": "a" * 500}, {"type": "image_pil", "image_pil": "one"}]
    (kept,) = newest_messages([{"role": "user", "content": parts}], MOST, PLACES)
    assert kept["content"] == [{"type": "text", "text": "a" * 200}, parts[1]]


READ_IN_A_SECOND = ("deepseek-coder", "phi-3")
REPEATED = " \n\t_é中🚀\u0301\u200b"
GENERATING = [
    pytest.param(name, marks=() if name in READ_IN_A_SECOND else pytest.mark.slow)
    for name in NAMES
    if name != "bert-bge"  # only embeds; it drops white space
]


@pytest.mark.parametrize("name", GENERATING)
def test_no_token_of_a_model_that_generates_has_more_characters_than_its_longest(name: str) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(build_tokenizer(keys(name))[0]))
    longest = longest_token(tokenizer)
    for text in [*(text for text, _ in recorded(name)), *(character * 3000 for character in REPEATED)]:
        assert len(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids) * longest, repr(text[:20])
