"""Encoding of reply records as bytes (contract §1.2, §1.3).

A line is written for every token of every stream, so lines are joined from prepared bytes: each token
costs one JSON escape of its text and one timestamp.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

_NS = 1_000_000_000
_NOTHING_CACHED = (b"prompt_eval_cached_count", 0)


class Clock:
    """Clock for RFC 3339 times in UTC with nanoseconds, as bytes; the part up to the second is cached."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = b""

    def now(self) -> bytes:
        """Return the present time, such as `2026-09-01T10:00:00.000000001Z`."""
        second, ns = divmod(time.time_ns(), _NS)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%09dZ" % (self._prefix, ns)


@dataclass(frozen=True, slots=True)
class Timings:
    """Timings of a final record: durations in ns, counts in tokens. Zeros are left out of the JSON.

    `prompt_eval_cached_count` is the part of the prompt that was read from the cache: 0 is written, and None, for
    unknown, is left out.
    """

    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int
    prompt_eval_cached_count: int | None = None

    def to_json(self) -> bytes:
        """Return the JSON keys of a final record, each with a leading comma."""
        cached = self.prompt_eval_cached_count
        pairs = (
            (b"total_duration", self.total_duration),
            (b"load_duration", self.load_duration),
            (b"prompt_eval_count", self.prompt_eval_count),
            (b"prompt_eval_cached_count", -1 if cached is None else cached),
            (b"prompt_eval_duration", self.prompt_eval_duration),
            (b"eval_count", self.eval_count),
            (b"eval_duration", self.eval_duration),
        )
        return b"".join(b',"%b":%d' % pair for pair in pairs if pair[1] > 0 or pair == _NOTHING_CACHED)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log probability; `top` are the alternatives, most likely first."""

    token: str
    logprob: float
    bytes: bytes
    top: tuple[TokenLogprob, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object of contract §2.9."""
        wire: dict[str, Any] = {"token": self.token, "logprob": self.logprob, "bytes": list(self.bytes)}
        if self.top:
            wire["top_logprobs"] = [item.to_wire() for item in self.top]
        return wire


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A tool call by the model. `index` counts the calls of a reply from 0."""

    id: str
    index: int
    name: str
    arguments: dict[str, Any]

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object of contract §1.3; the arguments are an object, never a string."""
        function = {"index": self.index, "name": self.name, "arguments": self.arguments}
        return {"id": self.id, "function": function}


class Replies:
    """Encoder for the records of one request. Subclasses differ in the place of the text.

    Every method returns one JSON object without a line end; `model` echoes the request's spelling.
    """

    __slots__ = ("_clock", "_head")

    def __init__(self, model: str, clock: Clock) -> None:
        self._clock = clock
        self._head = b'{"model":' + orjson.dumps(model) + b',"created_at":"'

    def delta(
        self,
        text: str,
        logprobs: Sequence[TokenLogprob] = (),
        *,
        thinking: str = "",
        calls: Sequence[MadeCall] = (),
    ) -> bytes:
        """Return a record that has content and is not the last."""
        said = self._said(orjson.dumps(text), _extras(thinking, calls) if thinking or calls else b"")
        record = self._head + self._clock.now() + said + b',"done":false'
        return record + _logprobs(logprobs) + b"}" if logprobs else record + b"}"

    def final(
        self,
        reason: str,
        timings: Timings | None = None,
        *,
        text: str = "",
        thinking: str = "",
        calls: Sequence[MadeCall] = (),
        context: Sequence[int] = (),
        logprobs: Sequence[TokenLogprob] = (),
    ) -> bytes:
        """Return the last or only record. Replies with reason `load` or `unload` have no timings."""
        return b"".join(
            (
                self._head,
                self._clock.now(),
                self._said(orjson.dumps(text), _extras(thinking, calls)),
                b',"done":true,"done_reason":',
                orjson.dumps(reason),
                b',"context":' + orjson.dumps(list(context)) if context else b"",
                *self._ordered(timings.to_json() if timings else b"", _logprobs(logprobs) if logprobs else b""),
                b"}",
            )
        )

    def rendered(self, prompt: str, images: int = 0) -> bytes:
        """Return the reply to `_debug_render_only`: the prompt and its number of images, without generated text."""
        info = orjson.dumps({"rendered_template": prompt, **({"image_count": images} if images else {})})
        return self._head + self._clock.now() + self._nothing() + b',"done":false,"_debug_info":' + info + b"}"

    def _said(self, quoted: bytes, extras: bytes) -> bytes:
        raise NotImplementedError

    def _nothing(self) -> bytes:
        return self._said(b'""', b"")

    def _ordered(self, timings: bytes, logprobs: bytes) -> tuple[bytes, bytes]:
        return timings, logprobs


class GenerateReplies(Replies):
    """Records of `/api/generate`: the text is `response`."""

    __slots__ = ()

    def _said(self, quoted: bytes, extras: bytes) -> bytes:
        return b'","response":' + quoted + extras


class ChatReplies(Replies):
    """Records of `/api/chat`: the text is `message.content`."""

    __slots__ = ()

    def _said(self, quoted: bytes, extras: bytes) -> bytes:
        return b'","message":{"role":"assistant","content":' + quoted + extras + b"}"

    def _nothing(self) -> bytes:
        return b'","message":{"role":"","content":""}'  # as recorded

    def _ordered(self, timings: bytes, logprobs: bytes) -> tuple[bytes, bytes]:
        return logprobs, timings


def _extras(thinking: str, calls: Sequence[MadeCall]) -> bytes:
    """Return the optional keys that are not empty: clients take an empty `thinking` for thinking."""
    said = b',"thinking":' + orjson.dumps(thinking) if thinking else b""
    return said + b',"tool_calls":' + orjson.dumps([call.to_wire() for call in calls]) if calls else said


def _logprobs(items: Sequence[TokenLogprob]) -> bytes:
    return b',"logprobs":' + orjson.dumps([item.to_wire() for item in items])
