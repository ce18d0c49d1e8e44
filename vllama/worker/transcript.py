"""Outputs of the engine become records: one whole, or a stream of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllama.errors import EngineError
from vllama.ollama.replies import Replies, TokenLogprob
from vllama.ollama.status import JSON, NDJSON
from vllama.worker.dialects import Rendered, Request
from vllama.worker.engine import Engine, token_logprobs
from vllama.worker.engine_errors import as_our_error
from vllama.worker.parsing import Piece
from vllama.worker.sink import Sink
from vllama.worker.timing import Stopwatch

MOST_CONTEXT_IDS = 16_384
"""`context` is left out beyond this many token ids: line readers choke on lines of over 128 KB (contract §1.1)."""


@dataclass(slots=True)
class Transcript:
    """One reply in the making. `ids` and `texts` are what the engine has said so far."""

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
        except Exception as error:
            raise as_our_error(error) from error
        completion = last.outputs[0]
        _raise_if_failed(completion)
        self.ids, self.texts = list(completion.token_ids), [completion.text]
        parsed = self.rendered.parsed
        said = parsed.output.whole(completion.text, self.ids) if parsed else Piece(completion.text)
        spoken = _without_end(completion, self.ids)
        body = self.replies.final(
            _done_reason(completion),
            self.stopwatch.timings(last.metrics, len(self.rendered.token_ids), len(self.ids)),
            text=said.content,
            thinking=said.thinking,
            calls=said.calls,
            context=self._context(completion),
            logprobs=token_logprobs(completion, len(spoken), self.request.top_logprobs),
        )
        await sink.reply(200, JSON, body)

    async def stream(self, outputs: AsyncGenerator[Any, None], sink: Sink) -> None:
        """Send the reply record by record. Raises EngineError where the engine fails, before or after the first."""
        started = False
        try:
            async for output in outputs:
                completion = output.outputs[0]
                if not started:
                    self.stopwatch.output()
                    _raise_if_failed(completion)  # still in time for a status
                    started = True
                    await sink.start(NDJSON)
                finished = output.finished
                body = self._lines(completion, finished=finished)
                if finished:
                    _raise_if_failed(completion)
                    body += self._last_line(output)
                if body:
                    await sink.write(body, last=finished)
        except Exception as error:
            raise as_our_error(error) from error

    def _lines(self, completion: Any, *, finished: bool) -> bytes:
        """The lines of one output: mostly one, none where its text is still held back."""
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
            return self.replies.delta(text, logprobs) + b"\n" if text or logprobs else b""
        piece = parsed.output.delta(text, ids, finished=finished)
        lines = b""
        if piece.thinking:
            lines += self.replies.delta("", logprobs, thinking=piece.thinking) + b"\n"
            logprobs = ()
        if piece.content or logprobs:
            lines += self.replies.delta(piece.content, logprobs) + b"\n"
        if piece.calls:
            # On a line of their own before the last: some clients look for them nowhere else (contract §1.3).
            lines += self.replies.delta("", calls=piece.calls) + b"\n"
        return lines

    def _last_line(self, output: Any) -> bytes:
        completion = output.outputs[0]
        timings = self.stopwatch.timings(output.metrics, len(self.rendered.token_ids), len(self.ids))
        return self.replies.final(_done_reason(completion), timings, context=self._context(completion)) + b"\n"

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


def _raise_if_failed(completion: Any) -> None:
    if completion.finish_reason in {"abort", "error"}:
        raise EngineError(
            f"an error was encountered while running the model: request ended by {completion.finish_reason}"
        )


def _without_end(completion: Any, ids: Sequence[int]) -> Sequence[int]:
    """The ids without the end-of-text or stop token that closed the reply."""
    ended_by_token = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
    return ids[:-1] if ended_by_token and ids else ids
