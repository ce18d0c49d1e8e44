"""What a server says of itself is believed only as far as it agrees with what was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_model import Script, serving_beside
from test_bench_metrics import run, sample

from vllama.bench.fleet import LoadOutcome
from vllama.bench.generator import KeptReply
from vllama.bench.result import Sample, ServerFacts, ServerTimes
from vllama.bench.sample_checks import check_samples, count_tokens
from vllama.bench.server_facts import facts_of
from vllama.errors import ServerUnreachable

MS = 1_000_000


def warnings(*samples: Sample) -> list[str]:
    return check_samples([run("a", 1, *samples)])


def timed(total_ms: float) -> Sample:
    """A request that took 400 ms, and its server says `total_ms`."""
    return replace(sample(0, 400), server=ServerTimes(int(total_ms * MS), 0, 0, 0))


def test_a_server_that_agrees_is_not_warned_of() -> None:
    assert warnings(timed(398), replace(sample(0, 400), counted_out=5)) == []


def test_a_duration_longer_than_what_was_seen_is_a_lie() -> None:
    assert warnings(timed(410)) == [
        "a: its total_duration is longer than what the client saw, in 1 of 1 replies",
    ]


@pytest.mark.parametrize(("total_ms", "warned"), [(260, False), (240, True)])
def test_a_duration_may_leave_out_a_quarter_and_fifty_ms(total_ms: float, warned: bool) -> None:
    assert bool(warnings(timed(total_ms))) is warned


def test_one_odd_duration_among_many_is_no_pattern() -> None:
    assert warnings(timed(900), *[timed(399)] * 19) == []


def test_counts_may_differ_by_the_end_of_each_text_only() -> None:
    def counted(tokens: int) -> list[str]:
        return warnings(*[replace(sample(0, 1), tokens_out=50, counted_out=tokens)] * 10)

    assert counted(49) == counted(52) == []
    assert counted(40) == ["a: it counted 500 tokens in 10 replies, the tokenizer 400 in their text"]


def test_replies_that_say_nothing_of_their_tokens_are_mentioned() -> None:
    assert warnings(replace(sample(0, 1), tokens_out=None)) == [
        "a: 1 of 1 replies say nothing of their tokens: they add none"
    ]


def test_the_tokens_of_a_text_go_to_its_own_sample() -> None:
    samples = (sample(0, 1), sample(0, 2))
    seen = LoadOutcome(samples, (KeptReply(1, 7, "one two three"),), 0.0, 1, interrupted=False)

    assert [one.counted_out for one in count_tokens(seen, lambda text: len(text.split())).samples] == [None, 3]
    assert count_tokens(seen, None) is seen


def test_the_facts_of_a_server_are_those_of_its_own_api() -> None:
    script = Script(context=2048, quantization="BF16", resident={"m"})
    with serving_beside(script) as url:
        native, openai = facts_of(url, "ollama", "m"), facts_of(url, "openai", "m")

    assert native == ServerFacts("0.24.0", 2048, "BF16", "abc", "llama", "134M")
    assert openai == ServerFacts(context=2048)


def test_the_context_of_a_model_that_is_not_loaded_is_what_it_was_trained_with() -> None:
    with serving_beside(Script()) as url:
        assert facts_of(url, "ollama", "m").context == 8192


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(ServerUnreachable, match=r"could not connect to http://127\.0\.0\.1:1"):
        facts_of("http://127.0.0.1:1", "ollama", "m")
