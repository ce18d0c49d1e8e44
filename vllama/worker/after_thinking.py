"""A `format` binds the answer and leaves the thinking before it alone (contract §2.4).

As Ollama does it: the model writes freely until thinking has ended, and from there once more under the constraint. vLLM
has an option to wait for the end of thinking, but its parsers do not know the end in every family (`granite`,
`openai_gptoss`), take old thinking in the prompt for this reply's (0.26), and wait for ever where a model does not
think this time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import regex  # type: ignore[import-untyped]

_LONGEST_END = 24
"""Tokens, at least, that the longest mark of an end takes."""

Generate = Callable[..., AsyncGenerator[Any, None]]


@dataclass(frozen=True, slots=True)
class ThinkingMarkers:
    """Patterns of where thinking begins ("" where it has begun already or has no mark) and ends."""

    begins: str
    ends: str


_TAGS = ThinkingMarkers("<think>", "</think>")
_BY_PARSER = {
    "GraniteReasoningParser": ThinkingMarkers(r"Here(?:'s| is) my thought process:", r"Here(?:'s| is) my response:"),
    "GptOssReasoningParser": ThinkingMarkers("", r"<\|channel\|>final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"),
    "HunyuanA13BReasoningParser": ThinkingMarkers("<think>", r"</think>\s*<answer>"),
}


def thinking_markers(parser: Any, prompt_end: str, *, wanted: bool) -> ThinkingMarkers | None:
    """Return the marks of the expected thinking; None if there is none.

    `parser` is vLLM's reasoning parser, `prompt_end` the part of the prompt that belongs to the reply, and `wanted`
    says whether the request wants thinking: a template may open it all the same.
    """
    known = _BY_PARSER.get(type(parser).__name__)
    if known is not None:
        return known if wanted or not known.begins else None
    begins, ends = parser.reasoning_start_str, parser.reasoning_end_str
    marks = ThinkingMarkers(regex.escape(begins), regex.escape(ends)) if begins and ends else _TAGS
    opened = [match.end() for match in regex.finditer(marks.begins, prompt_end)]
    closed = [match.end() for match in regex.finditer(marks.ends, prompt_end)]
    if opened and opened[-1] > max(closed, default=0):
        return ThinkingMarkers("", marks.ends)
    return marks if wanted and not closed else None


class Watch:
    """Finds the end of thinking in the tokens of a reply."""

    def __init__(self, marks: ThinkingMarkers, detokenize: Callable[[Sequence[int]], str]) -> None:
        self._begins, self._ends = regex.compile(marks.begins), regex.compile(marks.ends)
        self._detokenize = detokenize
        self._begun = not marks.begins
        self._blank_ids = 0  # how many ids at the beginning are blank
        self.ids: list[int] = []
        self.certain = 0
        """The number of tokens that are certainly before the answer."""
        self.ended = False

    def feed(self, ids: Sequence[int], *, finished: bool) -> bool:
        """Take the next tokens; return whether the answer begins after `certain` of them all.

        Blank tokens after the end still belong to thinking: models are used to them.
        """
        seen = len(self.ids)
        self.ids += ids
        if not self._begun:
            self._begin(finished=finished)
        if self._begun and not self.ended:
            self._find_end(max(0, seen - _LONGEST_END))
        if self.ended and self._begun:
            while self.certain < len(self.ids) and not self._detokenize([self.ids[self.certain]]).strip():
                self.certain += 1
        return self.ended and (finished or self.certain < len(self.ids))

    def _begin(self, *, finished: bool) -> None:
        text = self._detokenize(self.ids[self._blank_ids :]).lstrip()
        if not text:
            self._blank_ids = len(self.ids)
        match = self._begins.match(text, partial=not finished)
        if match is None:
            self.ended = bool(text) or finished  # it does not think this time
            self.certain = 0
        elif not match.partial:
            self._begun = True

    def _find_end(self, start: int) -> None:
        if self._ends.search(self._detokenize(self.ids[start:])) is None:
            self.certain = len(self.ids)
            return
        self.ended = True
        self.certain = next(
            end
            for end in range(start + 1, len(self.ids) + 1)
            if self._ends.search(self._detokenize(self.ids[start:end]))
        )


@dataclass(slots=True)
class AfterThinking:
    """One reply in two requests to the engine, that looks like one.

    `free` and `bound` start a request with a prompt and the most tokens, without and with the constraint; `free`
    streams in any case. `text_of` gives the text of a reply's first tokens, as vLLM would.
    """

    watch: Watch
    free: Generate
    bound: Generate
    text_of: Callable[[Sequence[int]], str]
    stream: bool
    _passed: int = 0  # how many tokens were handed on
    _length: int = 0  # characters of their text
    _held: str = ""  # the text of the others
    _logprobs: list[Any] = field(default_factory=list)  # of the others
    _metrics: Any = None
    _cached: int | None = None  # what the first request read of the prompt from the cache; the second reads all of it

    async def outputs(self, prompt: dict[str, Any], most_tokens: int) -> AsyncGenerator[Any, None]:
        """Yield the engine's outputs; closing this aborts the running request."""
        async with aclosing(self.free(prompt, most_tokens)) as outputs:
            async for output in outputs:
                completion = output.outputs[0]
                answers = self.watch.feed(completion.token_ids, finished=output.finished)
                self._held += completion.text
                self._logprobs += completion.logprobs or ()
                # Cut off, stopped by words of the user's, or failed: there will be no answer.
                is_over = completion.finish_reason not in {None, "stop"} or isinstance(completion.stop_reason, str)
                if output.finished and (is_over or not answers):
                    yield self._handed_on(output, len(self.watch.ids), self._held)
                    return
                if answers:
                    text = self.text_of(self.watch.ids[: self.watch.certain])[self._length :]
                    self._metrics, self._cached = output.metrics, output.num_cached_tokens
                    output.finished, completion.finish_reason, completion.stop_reason = False, None, None
                    thinking = self._handed_on(output, self.watch.certain, text)
                    break
                if self.stream and self.watch.certain > self._passed:
                    yield self._handed_on(output, self.watch.certain, self._held)
        if self.stream and thinking.outputs[0].token_ids:
            yield thinking
        kept = self.watch.ids[: self.watch.certain]
        longer = {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], *kept]}
        longer.pop("prompt", None)
        async with aclosing(self.bound(longer, most_tokens - len(kept))) as outputs:
            async for output in outputs:
                yield self._joined(output, thinking.outputs[0])

    def _handed_on(self, output: Any, end: int, text: str) -> Any:
        """Make the output hold all tokens up to `end` that were not handed on yet, and their text."""
        completion, count = output.outputs[0], end - self._passed
        completion.token_ids, completion.text = self.watch.ids[self._passed : end], text
        if completion.logprobs is not None:
            completion.logprobs, self._logprobs = self._logprobs[:count], self._logprobs[count:]
        self._passed = end
        self._length += len(text)
        self._held = ""
        return output

    def _joined(self, output: Any, thinking: Any) -> Any:
        """Return an output of the answer as if one request had generated thinking and answer."""
        completion = output.outputs[0]
        output.num_cached_tokens = self._cached
        if not self.stream:
            completion.text = thinking.text + completion.text
            completion.token_ids = [*thinking.token_ids, *completion.token_ids]
            if completion.logprobs is not None:
                completion.logprobs = [*thinking.logprobs, *completion.logprobs]
        if output.finished and output.metrics is not None and self._metrics is not None:
            for name in ("queued_ts", "scheduled_ts", "first_token_ts"):
                setattr(output.metrics, name, getattr(self._metrics, name))
        return output
