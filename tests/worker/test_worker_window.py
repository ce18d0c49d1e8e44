"""How much of the context a prompt and its reply may take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.ollama import options
from vllama.worker.window import Window


def window(served: int = 8192, **asked: Any) -> Window:
    return Window.of(options.resolve(asked), served)


def test_without_num_ctx_the_whole_context_that_is_served_counts() -> None:
    assert window().limit == 8192


def test_num_ctx_limits_a_request_and_never_lifts_the_limit() -> None:
    assert window(num_ctx=64).limit == 64
    assert window(num_ctx=10_000).limit == 8192
    assert window(num_ctx=0).limit == window(num_ctx=-5).limit == 8192


def test_a_prompt_fits_up_to_the_limit_and_never_without_room_for_one_token() -> None:
    assert window(num_ctx=64).fits(64)
    assert not window(num_ctx=64).fits(65)
    assert window().fits(8191)
    assert not window().fits(8192)


def test_a_prompt_that_is_too_long_keeps_its_first_tokens_and_its_last() -> None:
    assert window(num_ctx=8).clipped(range(100)) == [0, 1, 2, 3, 96, 97, 98, 99]
    assert window(num_ctx=8, num_keep=0).clipped(range(100)) == list(range(92, 100))
    assert window(num_ctx=8, num_keep=-1).clipped(range(100)) == [*range(7), 99]


def test_special_tokens_before_a_text_are_kept_beside_num_keep() -> None:
    assert window(num_ctx=8, num_keep=0).clipped(range(100), opening=1) == [0, *range(93, 100)]
    assert window(num_ctx=8).clipped(range(100), opening=2) == [*range(6), 98, 99]


def test_a_prompt_that_fills_all_that_is_served_leaves_room_for_the_reply_asked_for() -> None:
    assert len(window(100, num_predict=10).clipped(range(500))) == 90
    assert len(window(100).clipped(range(500))) == 50
    assert len(window(100, num_predict=80).clipped(range(500))) == 50


def test_with_shift_a_reply_goes_on_beyond_num_ctx() -> None:
    assert window(num_ctx=64, num_predict=120).longest_reply(18, shift=True) == 120


def test_without_shift_a_reply_ends_with_num_ctx() -> None:
    assert window(num_ctx=64, num_predict=120).longest_reply(18, shift=False) == 47


@pytest.mark.parametrize("unlimited", [-1, -2, 0])
def test_a_reply_without_a_limit_ends_with_ten_contexts_or_with_what_is_served(unlimited: int) -> None:
    assert window(num_ctx=64, num_predict=unlimited).longest_reply(18, shift=True) == 640
    assert window(num_predict=unlimited).longest_reply(18, shift=True) == 8192 - 18


@given(
    served=st.integers(2, 300),
    num_ctx=st.integers(-2, 400),
    num_predict=st.integers(-2, 400),
    num_keep=st.integers(-2, 400),
    prompt=st.integers(1, 600),
    shift=st.booleans(),
)
def test_whatever_is_asked_a_clipped_prompt_fits_and_leaves_room(
    served: int, num_ctx: int, num_predict: int, num_keep: int, prompt: int, shift: bool
) -> None:
    asked = window(served, num_ctx=num_ctx, num_predict=num_predict, num_keep=num_keep)
    ids = list(range(prompt))
    if not asked.fits(prompt):
        ids = asked.clipped(ids)
        assert asked.fits(len(ids))
        assert ids[-1] == prompt - 1
        assert ids == sorted(set(ids))
    reply = asked.longest_reply(len(ids), shift=shift)
    assert reply >= 1
    assert len(ids) + reply <= served
