"""Host copies of a GPU's memory, with tensors of the CPU in its place."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from vllama.worker.host_copies import GRANULARITY, HostCopies, sums  # noqa: E402 - needs torch

pytestmark = pytest.mark.vllm


def allocation(seed: int, units: int = 3) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (units * GRANULARITY,), dtype=torch.uint8, generator=generator)


@pytest.fixture
def copies() -> HostCopies:
    return HostCopies(pinned=False)


def test_what_was_saved_comes_back(copies: HostCopies) -> None:
    saved = {1: allocation(1), 2: allocation(2, 70)}
    before = {address: content.clone() for address, content in saved.items()}
    assert copies.save(saved) == sum(content.numel() for content in saved.values())

    for content in saved.values():
        content.zero_()
    assert copies.restore(saved) == []
    assert all(torch.equal(saved[address], before[address]) for address in saved)


def test_what_has_not_changed_is_not_copied_again(copies: HostCopies) -> None:
    saved = {1: allocation(1), 2: allocation(2)}
    copies.save(saved)
    assert copies.save(saved) == 0

    saved[2][GRANULARITY - 1] += 1
    assert copies.save(saved) == saved[2].numel()
    expected = saved[2].clone()
    saved[2].zero_()
    copies.restore(saved)
    assert torch.equal(saved[2], expected)


def test_a_bit_that_flips_in_the_host_is_found(copies: HostCopies) -> None:
    saved = {1: allocation(1), 2: allocation(2)}
    copies.save(saved)
    copies._copies[2].pieces[0][12345] ^= 4

    assert copies.restore(saved) == [2]


def test_only_what_is_asked_for_comes_back(copies: HostCopies) -> None:
    saved = {1: allocation(1), 2: allocation(2)}
    copies.save(saved)
    for content in saved.values():
        content.zero_()
    copies.restore({1: saved[1]})

    assert saved[1].any()
    assert not saved[2].any()


def test_a_copy_may_span_pieces(copies: HostCopies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllama.worker.host_copies._PIECE_BYTES", 5 * GRANULARITY)
    saved = {number: allocation(number, units) for number, units in enumerate((3, 4, 11, 1))}
    before = {address: content.clone() for address, content in saved.items()}
    copies.save(saved)
    for content in saved.values():
        content.zero_()

    assert copies.restore(saved) == []
    assert all(torch.equal(saved[address], before[address]) for address in saved)


def test_what_was_forgotten_is_copied_again(copies: HostCopies) -> None:
    saved = {1: allocation(1)}
    copies.save(saved)
    copies.forget()

    assert copies.save(saved) == saved[1].numel()


def test_nothing_to_save_is_nothing(copies: HostCopies) -> None:
    assert copies.save({}) == 0
    assert copies.restore({}) == []


def test_sums_tell_every_flipped_bit_and_every_exchange_of_words() -> None:
    content = allocation(7)
    before = sums(content)
    dice = random.Random(7)
    for _ in range(200):
        changed = content.clone()
        changed[dice.randrange(content.numel())] ^= 1 << dice.randrange(8)
        assert not torch.equal(sums(changed), before)
    words = content.view(torch.int64)
    for _ in range(200):
        one, other = dice.sample(range(words.numel()), 2)
        changed = words.clone()
        changed[one], changed[other] = words[other], words[one]
        assert not torch.equal(sums(changed.view(torch.uint8)), before)
