"""The answer is bound by the format, the thinking is not, whatever comes at once and however thinking is marked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.worker.after_thinking import AfterThinking, ThinkingMarkers, Watch, thinking_markers

TAGS = ThinkingMarkers("<think>", "</think>")
OPENED = ThinkingMarkers("", "</think>")
PHRASES = ThinkingMarkers(r"Here(?:'s| is) my thought process:", r"Here(?:'s| is) my response:")
HARMONY = thinking_markers(type("GptOssReasoningParser", (), {})(), "", wanted=True)
PROMPT = [900, 901]
END = "<|im_end|>"


class Tokens:
    """A vocabulary that grows as it is used."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def ids(self, texts: Sequence[str]) -> list[int]:
        start = len(self.texts)
        self.texts += texts
        return list(range(start, start + len(texts)))

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.texts[token] for token in ids)


@dataclass
class Engine:
    """Says `thinking` when it is free and `answer` when it is bound, some tokens at a time."""

    thinking: list[str]
    answer: list[str]
    at_once: int = 1
    finish_reason: str = "stop"
    stop_reason: str | None = None
    tokens: Tokens = field(default_factory=Tokens)
    asked: list[tuple[list[int], int]] = field(default_factory=list)
    closed: int = 0

    async def _say(
        self, texts: list[str], prompt: dict[str, Any], most: int, *, whole: bool, started: float
    ) -> AsyncGenerator[Any, None]:
        self.asked.append((prompt["prompt_token_ids"], most))
        ids = self.tokens.ids(texts)
        step = len(ids) if whole else self.at_once
        try:
            for start in range(0, len(ids), step):
                part = ids[start : start + step]
                finished = start + step >= len(ids)
                yield SimpleNamespace(
                    finished=finished,
                    num_cached_tokens=int(started),
                    metrics=SimpleNamespace(
                        queued_ts=started, scheduled_ts=started, first_token_ts=started, last_token_ts=started + 1
                    ),
                    outputs=[
                        SimpleNamespace(
                            token_ids=part,
                            text=self.tokens.text(part).replace(END, ""),
                            logprobs=[f"log {token}" for token in part],
                            finish_reason=self.finish_reason if finished else None,
                            stop_reason=self.stop_reason if finished else None,
                        )
                    ],
                )
        finally:
            self.closed += 1

    def reply(self, marks: ThinkingMarkers, *, stream: bool) -> AfterThinking:
        def free(prompt: dict[str, Any], most: int) -> AsyncGenerator[Any, None]:
            return self._say(self.thinking, prompt, most, whole=False, started=1.0)

        def bound(prompt: dict[str, Any], most: int) -> AsyncGenerator[Any, None]:
            return self._say(self.answer, prompt, most, whole=not stream, started=5.0)

        return AfterThinking(Watch(marks, self.tokens.text), free, bound, self.tokens.text, stream)

    def all_of(self, marks: ThinkingMarkers, *, stream: bool = True) -> Any:
        """What a client of the engine sees: text, ids and log probabilities of the whole, and the last output."""

        async def collect() -> list[Any]:
            prompt = {"prompt_token_ids": PROMPT, "prompt": "text"}
            return [
                (output, output.outputs[0].text, list(output.outputs[0].token_ids), output.outputs[0].logprobs)
                async for output in self.reply(marks, stream=stream).outputs(prompt, 100)
            ]

        seen = asyncio.run(collect())
        assert [output.finished for output, *_ in seen] == [False] * (len(seen) - 1) + [True]
        assert stream or len(seen) == 1
        ids = [token for _, _, part, _ in seen for token in part]
        assert [entry for *_, part in seen for entry in part] == [f"log {token}" for token in ids]
        return SimpleNamespace(text="".join(text for _, text, *_ in seen), ids=ids, last=seen[-1][0])


def thinking(*texts: str) -> list[str]:
    return ["<think>", "\n", "Hm", ".", "</think>", *texts]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("at_once", range(1, 10))
@pytest.mark.parametrize(
    ("marks", "said", "kept"),
    [
        (TAGS, thinking("\n\n", "Free", " text", END), 6),
        (TAGS, thinking("Free", " text", END), 5),
        (TAGS, thinking(END), 5),
        (TAGS, ["<", "think", ">", "Hm", "</", "think", ">", "\n", "Free", END], 8),
        (OPENED, ["Hm", ".", "\n", "</think>", "\n\n", "Free", END], 5),
        (PHRASES, ["Here", " is", " my thought process:", " Hm", " Here's my", " response:", " ", "Free", END], 7),
        (HARMONY, ["<|channel|>", "analysis", "<|message|>", "Hm", "<|end|>", "<|start|>", "assistant",
                   "<|channel|>", "final", "<|message|>", "Free", END], 10),
    ],
    ids=["tags", "no blanks", "no answer", "tags in parts", "opened", "phrases", "harmony"],
)  # fmt: skip
def test_the_answer_is_made_anew_after_the_thinking_and_the_blanks_behind_it(
    marks: ThinkingMarkers, said: list[str], kept: int, at_once: int, stream: bool
) -> None:
    engine = Engine(said, ["{", '"a"', ":1}", END], at_once)

    seen = engine.all_of(marks, stream=stream)

    assert seen.text == "".join(said[:kept]) + '{"a":1}'
    assert engine.tokens.text(seen.ids) == seen.text + END
    (first, most), (second, rest) = engine.asked
    assert (first, most) == (PROMPT, 100)
    assert (second, rest) == ([*PROMPT, *range(kept)], 100 - kept)
    assert engine.closed == 2


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("said", [["Free", " text", END], [END], ["<", "b", ">", END], ["\n", "Free", END]])
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_where_the_model_does_not_think_this_time_all_of_its_reply_is_bound(
    said: list[str], at_once: int, stream: bool
) -> None:
    engine = Engine(said, ["{}", END], at_once)

    seen = engine.all_of(TAGS, stream=stream)

    assert seen.text == "{}"
    assert engine.asked[1] == (PROMPT, 100)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("at_once", [1, 2, 9])
@pytest.mark.parametrize(
    ("said", "finish_reason", "stop_reason"),
    [
        (["<think>", "Hm", " hm"], "length", None),
        (["<think>", "Hm", "</think>"], "length", None),
        (["<think>", "Hm", " hm"], "stop", "hm"),
        (["<think>", "Hm", END], "stop", None),
        (["<think>", "Hm"], "abort", None),
        (["<th"], "length", None),
    ],
)
def test_a_reply_that_ends_before_its_answer_is_given_as_it_is(
    said: list[str], finish_reason: str, stop_reason: str | None, at_once: int, stream: bool
) -> None:
    engine = Engine(said, ["{}", END], at_once, finish_reason, stop_reason)

    seen = engine.all_of(TAGS, stream=stream)

    assert seen.text == "".join(said).replace(END, "")
    assert len(seen.ids) == len(said)
    assert (seen.last.outputs[0].finish_reason, seen.last.outputs[0].stop_reason) == (finish_reason, stop_reason)
    assert len(engine.asked) == 1


@given(st.integers(1, 60), st.integers(0, 80))
def test_long_thinking_is_handed_on_while_it_comes(at_once: int, words: int) -> None:
    said = ["<think>", *(f" {word}" for word in range(words)), "</", "think", ">", "\n", "Free", END]
    engine = Engine(said, ["{}", END], at_once)

    seen = engine.all_of(TAGS)

    assert seen.text == "".join(said[:-2]) + "{}"
    assert len(seen.ids) == len(said)


def test_the_figures_of_time_are_those_of_one_request() -> None:
    last = Engine(thinking("Free", END), ["{}", END]).all_of(TAGS).last
    metrics = last.metrics

    assert last.num_cached_tokens == 1  # the second finds all of the prompt in the cache, since the first has read it
    assert (metrics.queued_ts, metrics.scheduled_ts, metrics.first_token_ts, metrics.last_token_ts) == (1, 1, 1, 6)


def test_leaving_early_ends_the_request_in_the_engine() -> None:
    engine = Engine(thinking("Free", END), ["{}", END])

    async def leave() -> None:
        outputs = engine.reply(TAGS, stream=True).outputs({"prompt_token_ids": PROMPT}, 100)
        await anext(outputs)
        await outputs.aclose()

    asyncio.run(leave())
    assert (engine.closed, len(engine.asked)) == (1, 1)


def parser(begins: str | None = "<think>", ends: str | None = "</think>", name: str = "Some") -> Any:
    return type(name, (), {"reasoning_start_str": begins, "reasoning_end_str": ends})()


@pytest.mark.parametrize(
    ("prompt_end", "wanted", "marks"),
    [
        ("<|im_start|>assistant\n", True, TAGS),
        ("<|im_start|>assistant\n", False, None),
        ("<|im_start|>assistant\n<think>\n", True, OPENED),
        ("<|im_start|>assistant\n<think>\n", False, OPENED),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", True, None),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False, None),
        ("<|im_start|>assistant\n</think>", False, None),
    ],
)
def test_the_end_of_the_prompt_tells_whether_thinking_is_to_come(
    prompt_end: str, wanted: bool, marks: ThinkingMarkers | None
) -> None:
    assert thinking_markers(parser(), prompt_end, wanted=wanted) == marks


def test_marks_are_those_of_the_family() -> None:
    assert thinking_markers(parser("[THINK]", "[/THINK]"), "", wanted=True) == ThinkingMarkers(
        r"\[THINK\]", r"\[/THINK\]"
    )
    assert thinking_markers(parser(None, None), "", wanted=True) == TAGS
    assert thinking_markers(parser(None, None, "GraniteReasoningParser"), "", wanted=True) == PHRASES
    assert thinking_markers(parser(None, None, "GraniteReasoningParser"), "", wanted=False) is None
    gpt_oss = parser(None, None, "GptOssReasoningParser")
    assert thinking_markers(gpt_oss, "", wanted=False) == HARMONY, "gpt-oss cannot stop thinking"


def test_a_reply_of_blanks_is_read_once() -> None:
    tokens, read = Tokens(), list[int]()

    def text(ids: Sequence[int]) -> str:
        read.append(len(ids))
        return tokens.text(ids)

    watch = Watch(TAGS, text)
    for token in tokens.ids([" "] * 1_000):
        assert not watch.feed([token], finished=False)

    assert sum(read) == 1_000
    assert not watch.feed(tokens.ids(["<think>"]), finished=False)
    assert watch.feed(tokens.ids(["</think>", "yes"]), finished=False)
    assert watch.certain == 1_002
