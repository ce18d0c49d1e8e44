"""The four APIs that a server may be asked through: the body of a request, and what a reply says.

Reading is cheap, because it happens while other replies arrive: of a stream only the records at both ends are parsed,
and those in between that look empty. The text is read later, of the replies whose text is wanted.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import orjson

from vllama.bench.result import Api, ServerTimes

Record: TypeAlias = dict[str, Any]

_DONE = b"[DONE]"
# How the servers spell a record without text; one that spells it otherwise gets a chunk too many.
_LOOKS_EMPTY = (b'":""', b'"delta":{}', b'"choices":[]')


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request says. `images` are in base64."""

    text: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """Facts read from a reply. `texts` are the times at which records with text were complete (streams only).

    `finished`: the record that ends a reply came. `error` is what an error record says.
    """

    texts: tuple[int, ...]
    finished: bool
    error: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    server: ServerTimes | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API. `body` makes a request's JSON, `text_of` returns the text in a record of a reply, "" for none."""

    path: str
    separator: bytes
    body: Callable[[str, Prompt, int, bool, Record | None], Record]
    text_of: Callable[[Record], str]
    counts_of: Callable[[Record], tuple[int | None, int | None]]
    ends: Callable[[Record], bool]

    def encode(self, model: str, prompt: Prompt, tokens: int, *, stream: bool, schema: Record | None) -> bytes:
        """Return a request for at most so many tokens, decoded greedily; the reply keeps the schema if there is one."""
        return orjson.dumps(self.body(model, prompt, tokens, stream, schema))

    def read(self, pieces: Sequence[bytes], times: Sequence[int], *, streamed: bool) -> Reply:
        """Return what the pieces of a reply's body say, which arrived at these times (ns)."""
        records, arrivals = self._records(pieces, times)
        if not streamed:
            arrivals = []
        last = _parse_last(records)
        tokens_in, tokens_out = self._counts(last)
        return Reply(
            texts=self._texts(records, arrivals),
            finished=any(self.ends(record) for record in last) or (not streamed and bool(last)),
            error=next((_error_text(record) for record in last if record.get("error")), ""),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            server=next((spent for record in last if (spent := server_times(record))), None),
        )

    def text(self, body: bytes) -> str:
        """Return all the text of a reply."""
        records, _ = self._records([body], [0])
        return "".join(map(self.text_of, filter(None, map(_parse, records))))

    def _records(self, pieces: Sequence[bytes], times: Sequence[int]) -> tuple[list[bytes], list[int]]:
        """Return the records, and when each was complete."""
        body = b"".join(pieces)
        ends_of_pieces = list(accumulate(map(len, pieces)))
        records, arrivals, end = [], [], 0
        for part in body.split(self.separator):
            end += len(part) + len(self.separator)
            if record := part.strip():
                records.append(record)
                arrivals.append(times[min(bisect.bisect_left(ends_of_pieces, end), len(times) - 1)])
        return records, arrivals

    def _texts(self, records: Sequence[bytes], arrivals: Sequence[int]) -> tuple[int, ...]:
        """Return when records with text came: parse inwards from both ends until there is one, and what looks empty."""
        if not arrivals:
            return ()

        def has_text(index: int) -> bool:
            record = _parse(records[index])
            return record is not None and self.text_of(record) != ""

        first = next((i for i in range(len(records)) if has_text(i)), None)
        if first is None:
            return ()
        last = next(i for i in range(len(records) - 1, -1, -1) if has_text(i))
        inner = (
            i for i in range(first + 1, last) if not any(mark in records[i] for mark in _LOOKS_EMPTY) or has_text(i)
        )
        within = [arrivals[i] for i in inner]
        return (arrivals[first], *within, *([arrivals[last]] if last > first else []))

    def _counts(self, last: Iterable[Record]) -> tuple[int | None, int | None]:
        """Return the tokens of the prompt and of the reply, from the newest record that counts them."""
        return next((counts for record in last if (counts := self.counts_of(record))[1] is not None), (None, None))


def _parse(record: bytes) -> Record | None:
    """Return the record, or None for what is none: a comment, an event's name, the end mark."""
    data = record.removeprefix(b"data:").lstrip()
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {"done": True} if data == _DONE else None
    return value if isinstance(value, dict) else None


def _parse_last(records: Sequence[bytes]) -> list[Record]:
    """Return the last few records, newest first: the end, the counts and the reason are among them."""
    return [record for record in map(_parse, reversed(records[-4:])) if record is not None]


def refusal(status: int, body: bytes) -> str:
    """Return what a reply with this status says is wrong."""
    record = _parse(body) or {}
    text = _error_text(record) if record.get("error") else body[:300].decode(errors="replace").strip()
    return f"{status}: {text}" if text else str(status)


def _error_text(record: Record) -> str:
    error = record["error"]
    return str(error.get("message", error) if isinstance(error, dict) else error)


def server_times(record: Record) -> ServerTimes | None:
    """Return the durations in the last record of an Ollama reply; None where it has none."""
    if "total_duration" not in record:
        return None
    names = ("total", "load", "prompt_eval", "eval")
    return ServerTimes(*(int(record.get(f"{name}_duration", 0)) for name in names))


# Greedy, without the penalties and cuts that servers differ in.
_OPTIONS = {"temperature": 0, "seed": 0, "top_p": 1.0, "repeat_penalty": 1.0}
_SAMPLING = {"temperature": 0, "seed": 0, "top_p": 1.0}


def _chat_body(model: str, prompt: Prompt, tokens: int, stream: bool, schema: Record | None) -> Record:
    message: Record = {"role": "user", "content": prompt.text}
    if prompt.images:
        message["images"] = prompt.images
    return {"model": model, "messages": [message], **_native(tokens, stream, schema)}


def _generate_body(model: str, prompt: Prompt, tokens: int, stream: bool, schema: Record | None) -> Record:
    images = {"images": prompt.images} if prompt.images else {}
    return {"model": model, "prompt": prompt.text, **images, **_native(tokens, stream, schema)}


def _native(tokens: int, stream: bool, schema: Record | None) -> Record:
    given = {"format": schema} if schema is not None else {}
    return {"stream": stream, "options": {**_OPTIONS, "num_predict": tokens}, **given}


def _chat_completions_body(model: str, prompt: Prompt, tokens: int, stream: bool, schema: Record | None) -> Record:
    content: str | list[Record] = prompt.text
    if prompt.images:
        urls = [f"data:image/{_image_type(image)};base64,{image}" for image in prompt.images]
        content = [*({"type": "image_url", "image_url": {"url": url}} for url in urls)]
        content.append({"type": "text", "text": prompt.text})
    return {"model": model, "messages": [{"role": "user", "content": content}], **_openai(tokens, stream, schema)}


def _completions_body(model: str, prompt: Prompt, tokens: int, stream: bool, schema: Record | None) -> Record:
    return {"model": model, "prompt": prompt.text, **_openai(tokens, stream, schema)}


def _openai(tokens: int, stream: bool, schema: Record | None) -> Record:
    body: Record = {"stream": stream, "max_tokens": tokens, **_SAMPLING}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}
    return body


def _image_type(image: str) -> str:
    return {"/": "jpeg", "R": "gif" if image.startswith("R0lG") else "webp"}.get(image[:1], "png")


def _chat_text(record: Record) -> str:
    message = record.get("message") or {}
    return message.get("content") or message.get("thinking") or ("{}" if message.get("tool_calls") else "")


def _generate_text(record: Record) -> str:
    return record.get("response") or record.get("thinking") or ""


def _choice_text(record: Record) -> str:
    choice: Record = next(iter(record.get("choices") or ()), {})
    part = choice.get("delta") or choice.get("message") or {}
    said = part.get("content") or part.get("reasoning") or part.get("reasoning_content")
    return choice.get("text") or said or ("{}" if part.get("tool_calls") else "")


def _native_counts(record: Record) -> tuple[int | None, int | None]:
    return record.get("prompt_eval_count"), record.get("eval_count")


def _usage(record: Record) -> tuple[int | None, int | None]:
    usage = record.get("usage") or {}
    return usage.get("prompt_tokens"), usage.get("completion_tokens")


def _is_done(record: Record) -> bool:
    return record.get("done") is True


DIALECTS: dict[Api, Dialect] = {
    "ollama": Dialect("/api/chat", b"\n", _chat_body, _chat_text, _native_counts, _is_done),
    "ollama-generate": Dialect("/api/generate", b"\n", _generate_body, _generate_text, _native_counts, _is_done),
    "openai": Dialect("/v1/chat/completions", b"\n\n", _chat_completions_body, _choice_text, _usage, _is_done),
    "openai-completions": Dialect("/v1/completions", b"\n\n", _completions_body, _choice_text, _usage, _is_done),
}
