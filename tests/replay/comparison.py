"""Compare a response with the recorded one: everything that a client can tell, save what another run would change.

Nothing of an HTTP response is left out but its date. In bodies, `varying.py` says which values differ from run to run
and what must be true of them all the same; every other value has to be equal. Order counts: of keys, of records in a
stream, of events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from replay.recording import Exchange, Request, Response
from replay.varying import Facts, Rule, varies_in_number, varying, without_digests

NOT_COMPARED = frozenset({"date", "content-length", "transfer-encoding"})
"""The date, and what `_framing` looks at."""

_NDJSON = "application/x-ndjson"
_EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Difference:
    """Something that was otherwise. `recorded` and `actual` are texts, None where there is nothing.

    `where` is `status`, `reason`, `framing`, `header NAME`, `body`, or a path in JSON such as `body.models[].size`;
    in streams it begins with the kind of record: `first.response`, `last.done_reason`.
    """

    where: str
    recorded: str | None
    actual: str | None

    def __str__(self) -> str:
        return f"{self.where}: {_shown(self.recorded)} → {_shown(self.actual)}"


def differences(exchange: Exchange, actual: Response) -> list[Difference]:
    """Return the differences, the first at each place, in the order in which a reader of the response meets them."""
    recorded = exchange.response
    found = [*_heads(exchange.request, recorded, actual)]
    if recorded.header("content-type").startswith(_NDJSON) and actual.header("content-type").startswith(_NDJSON):
        found += _streams(exchange.request, _records(recorded.body), _records(actual.body))
    elif recorded.header("content-type").startswith(_EVENTS) and actual.header("content-type").startswith(_EVENTS):
        found += _streams(exchange.request, _events(recorded.body), _events(actual.body))
    else:
        found += _bodies(exchange.request, recorded, actual)
    return list({difference.where: difference for difference in reversed(found)}.values())[::-1]


def _heads(request: Request, recorded: Response, actual: Response) -> Iterator[Difference]:
    if recorded.status != actual.status:
        yield Difference("status", str(recorded.status), str(actual.status))
    elif recorded.reason != actual.reason:
        yield Difference("reason", recorded.reason, actual.reason)
    names = dict.fromkeys(name for name, _ in (*recorded.headers, *actual.headers))
    for name in names:
        before, after = recorded.header(name) or None, actual.header(name) or None
        if before != after and name not in NOT_COMPARED:
            yield Difference(f"header {name}", before, after)
    before, after = _framing(request, recorded), _framing(request, actual)
    if before != after:
        yield Difference("framing", before, after)


def _framing(request: Request, response: Response) -> str:
    if response.header("transfer-encoding"):
        return response.header("transfer-encoding")
    if not response.header("content-length"):
        return "no length"
    # A HEAD has nothing but the length; how long the list of models is, the models decide.
    exact = request.method == "HEAD" and request.path != "/api/tags"
    return f"length {response.header('content-length')}" if exact else "length"


def _bodies(request: Request, recorded: Response, actual: Response) -> Iterator[Difference]:
    if recorded.body == actual.body:
        return
    try:
        before, after = json.loads(recorded.body), json.loads(actual.body)
    except ValueError:
        before = after = None
    if before is None or _refuses(before) != _refuses(after):
        yield Difference("body", recorded.body.decode(), actual.body.decode(errors="replace"))
        return
    yield from _values(request, "body", before, after)
    if _end(recorded.body) != _end(actual.body):
        yield Difference("end of body", repr(_end(recorded.body)), repr(_end(actual.body)))


def _refuses(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("error"))


def _end(body: bytes) -> str:
    return body[len(body.rstrip()) :].decode()


Record = tuple[str, Any]
"""What kind of record it is, and its value."""


def _records(body: bytes) -> list[Record]:
    """The records of NDJSON; the kind of a line that reports a step is the step."""
    *lines, rest = body.decode().split("\n")
    return [*map(_record, lines), *([("line without an end", rest)] if rest else [])]


def _record(line: str) -> Record:
    try:
        value = json.loads(line)
    except ValueError:
        return ("line that is no JSON" if line else "blank line", line)
    if "error" in value:
        return "error", value
    if "status" in value:
        return without_digests(value["status"]), value
    return ("last" if value.get("done") else "more"), value


def _events(body: bytes) -> list[Record]:
    """The server-sent events; the kind of one without a name is what OpenAI's chunks say of themselves."""
    *blocks, rest = body.decode().split("\n\n")
    return [*map(_event, blocks), *([("event without an end", rest)] if rest else [])]


def _event(block: str) -> Record:
    lines = block.split("\n")
    name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else ""
    if len(lines) != 1 or not lines[0].startswith("data: "):
        return "malformed event", block
    data = lines[0].removeprefix("data: ")
    if data == "[DONE]":
        return data, data
    value = json.loads(data)
    if name:
        return name, value
    choices = value.get("choices")
    if not choices:
        return "usage" if "usage" in value else "error", value
    return ("finish" if choices[0].get("finish_reason") else "chunk"), value


def _streams(request: Request, recorded: list[Record], actual: list[Record]) -> Iterator[Difference]:
    before, after = (", ".join(kind for kind, _ in groupby(kind for kind, _ in side)) for side in (recorded, actual))
    if before != after:
        yield Difference("order of records", before, after)
    patterns: dict[str, list[Any]] = {}
    for kind, value in recorded:
        patterns.setdefault(kind, []).append(value)
    for kind, value in actual:
        if kind in patterns:
            yield from _nearest(request, kind, patterns[kind], value)


def _nearest(request: Request, where: str, patterns: Sequence[Any], value: Any) -> list[Difference]:
    """The differences from the pattern that has the fewest; what a model says decides which one that is."""
    return min((list(_values(request, where, pattern, value)) for pattern in patterns), key=len)


def _values(request: Request, where: str, recorded: Any, actual: Any, parent: Any = None) -> Iterator[Difference]:
    if (rule := _varying(where, recorded)) is not None:
        if not rule(Facts(request, recorded, actual, *(parent or ({}, {})))):
            yield Difference(where, _text(recorded), _text(actual))
    elif isinstance(recorded, dict) and isinstance(actual, dict):
        yield from _objects(request, where, recorded, actual)
    elif isinstance(recorded, list) and isinstance(actual, list):
        yield from _lists(request, where, recorded, actual)
    elif type(recorded) is not type(actual) or recorded != actual:
        yield Difference(where, _text(recorded), _text(actual))


def _varying(where: str, recorded: Any) -> Rule | None:
    """Rules are about single values, and about lists of them."""
    inner = recorded if isinstance(recorded, list) else [recorded]
    return None if recorded is None or any(isinstance(value, dict | list) for value in inner) else varying(where)


def _objects(
    request: Request, where: str, recorded: Mapping[str, Any], actual: Mapping[str, Any]
) -> Iterator[Difference]:
    for key in dict.fromkeys((*recorded, *actual)):
        if key in recorded and key in actual:
            yield from _values(request, f"{where}.{key}", recorded[key], actual[key], (recorded, actual))
        else:
            before, after = (_text(side[key]) if key in side else None for side in (recorded, actual))
            yield Difference(f"{where}.{key}", before, after)
    order, other = (", ".join(key for key in side if key in recorded and key in actual) for side in (recorded, actual))
    if order != other:
        yield Difference(f"{where} in order", order, other)


def _lists(request: Request, where: str, recorded: Sequence[Any], actual: Sequence[Any]) -> Iterator[Difference]:
    if varies_in_number(where) and recorded:
        for value in actual:
            yield from _nearest(request, f"{where}[]", recorded, value)
        if not actual:
            yield Difference(where, f"{len(recorded)} entries", "0 entries")
        return
    if len(recorded) != len(actual):
        yield Difference(where, f"{len(recorded)} entries", f"{len(actual)} entries")
    for before, after in zip(recorded, actual, strict=False):
        yield from _values(request, f"{where}[]", before, after)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shown(text: str | None) -> str:
    if text is None:
        return "nothing"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_SHOWN = 160
