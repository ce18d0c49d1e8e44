"""Outputs of the engine become records: one whole, or a stream of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllama.errors import EngineError
from vllama.ollama.replies import Replies, Timings, TokenLogprob
from vllama.ollama.status import JSON, NDJSON
from vllama.protocol.token_counts import TokenCounts
from vllama.worker.closed_calls import Piece
from vllama.worker.dialects import Rendered, Request
from vllama.worker.engine import Engine, cached_tokens, token_logprobs
from vllama.worker.engine_errors import as_our_error
from vllama.worker.sink import Sink
from vllama.worker.timing import Stopwatch

MOST_CONTEXT_IDS = 16_384
"""Maximum number of token ids in `context`; beyond it the field is omitted (contract §1.1).

Some clients fail on lines of over 128 KB.
"""


@dataclass(slots=True)
class Transcript:
    """A reply while it is generated. `ids` and `texts` are the engine's output so far."""

    request: Request
    replies: Replies
    rendered: Rendered
    engine: Engine
    stopwatch: Stopwatch
    returns_context: bool
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    async def whole(self, outputs: AsyncGenerator[Any, None], sink: Sink) -> None:
        """Send the reply as one record. Raises EngineError where the engine fails."""
        try:
            async for output in outputs:
                last = output
        except asyncio.CancelledError:
            sink.count(self._counts(None))
            raise
        except Exception as error:
            raise as_our_error(error) from error
        completion = last.outputs[0]
        self._raise_if_failed(completion)
        self.ids, self.texts = list(completion.token_ids), [completion.text]
        parsed = self.rendered.parsed
        said = parsed.output.whole(completion.text, self.ids) if parsed else Piece(completion.text)
        spoken = _without_end(completion, self.ids)
        body = self.replies.final(
            _done_reason(completion),
            self._timings(last),
            text=said.content,
            thinking=said.thinking,
            calls=said.calls,
            context=self._context(completion),
            logprobs=token_logprobs(completion, len(spoken), self.request.top_logprobs),
        )
        sink.count(self._counts(last))
        await sink.reply(200, JSON, body)

    async def stream(self, outputs: AsyncGenerator[Any, None], sink: Sink) -> None:
        """Send the reply record by record. Raises EngineError where the engine fails, before or after the first."""
        started, output = False, None
        try:
            async for output in outputs:
                completion = output.outputs[0]
                if not started:
                    self.stopwatch.output()
                    self._raise_if_failed(completion)  # still in time for a status
                    started = True
                    await sink.start(NDJSON)
                finished = output.finished
                # One write for each record: some clients take a network chunk for a record.
                for line in self._lines(completion, finished=finished):
                    await sink.write(line, last=False)
                if finished:
                    self._raise_if_failed(completion)
                    sink.count(self._counts(output))
                    await sink.write(self._last_line(output), last=True)
        except asyncio.CancelledError:
            if output is None or not output.finished:
                sink.count(self._counts(output))  # until the client left
            raise
        except Exception as error:
            raise as_our_error(error) from error

    def _raise_if_failed(self, completion: Any) -> None:
        """Raise EngineError if the engine ended the request; before the first token, the grammar is at fault."""
        if completion.finish_reason not in {"abort", "error"}:
            return
        cause = f"request ended by {completion.finish_reason}"
        if completion.finish_reason == "error" and self.request.format is not None and not self.ids:
            cause += ": its format could not be compiled into a grammar; the model's log has the cause"
        raise EngineError(f"an error was encountered while running the model: {cause}")

    def _lines(self, completion: Any, *, finished: bool) -> list[bytes]:
        """Return the lines of one output: usually one, none if its text is still held back."""
        text, ids = completion.text, completion.token_ids
        self.ids.extend(ids)
        logprobs: Sequence[TokenLogprob] = ()
        if self.request.logprobs:
            spoken = _without_end(completion, ids) if finished else ids
            logprobs = token_logprobs(completion, len(spoken), self.request.top_logprobs)
        if text:
            self.texts.append(text)
        parsed = self.rendered.parsed
        if parsed is None:
            return [self.replies.delta(text, logprobs) + b"\n"] if text or logprobs else []
        piece = parsed.output.delta(text, ids, finished=finished)
        lines = []
        if piece.thinking:
            lines.append(self.replies.delta("", logprobs, thinking=piece.thinking) + b"\n")
            logprobs = ()
        if piece.content or logprobs:
            lines.append(self.replies.delta(piece.content, logprobs) + b"\n")
        # Each call has a line of its own: some clients keep only the last line with calls, and some look for calls
        # nowhere else than before the last line (contract §1.3).
        lines += (self.replies.delta("", calls=(call,)) + b"\n" for call in piece.calls)
        return lines

    def _last_line(self, output: Any) -> bytes:
        completion = output.outputs[0]
        reason, context = _done_reason(completion), self._context(completion)
        return self.replies.final(reason, self._timings(output), context=context) + b"\n"

    def _timings(self, output: Any) -> Timings:
        prompt_tokens = len(self.rendered.token_ids)
        return self.stopwatch.timings(output.metrics, prompt_tokens, len(self.ids), cached_tokens(output))

    def _counts(self, output: Any) -> TokenCounts:
        cached = cached_tokens(output) if output is not None else None
        return TokenCounts(len(self.rendered.token_ids), cached or 0, len(self.ids))

    def _context(self, completion: Any) -> Sequence[int]:
        if not self.returns_context:
            return ()
        spoken = _without_end(completion, self.ids)
        if isinstance(completion.stop_reason, str):
            spoken = self.engine.tokenize("".join(self.texts))  # the ids run past the cut that the stop string made
        asked = self.rendered.text_ids  # an image cannot come back as token ids
        if len(asked) + len(spoken) > MOST_CONTEXT_IDS:
            return ()
        return [*asked, *spoken]


def _done_reason(completion: Any) -> str:
    return "length" if completion.finish_reason == "length" else "stop"


def _without_end(completion: Any, ids: Sequence[int]) -> Sequence[int]:
    """Return the ids without the end-of-text or stop token that ended the reply."""
    ended_by_token = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
    return ids[:-1] if ended_by_token and ids else ids
