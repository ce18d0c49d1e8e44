"""The recorded exchanges: what was sent to a real Ollama 0.24.0, and what it answered.

`exchanges.jsonl` holds one exchange a line, in the order in which they were recorded. It was made from a folder of
recordings, NAME.request and NAME.http, by

    python tests/replay/recording.py FOLDER > tests/replay/exchanges.jsonl

Ollama served `smollm2:135m` on the CPU, its cloud was switched off, and its way to other hosts led to a closed port.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("exchanges.jsonl")

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Request:
    """A request, byte for byte: `head` is all up to and with the blank line."""

    head: str
    body: bytes

    @property
    def method(self) -> str:
        return self.head.split(" ", 1)[0]

    @property
    def path(self) -> str:
        return self.head.split(" ", 2)[1]

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The body's JSON object; empty where it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Response:
    """A response. Names of headers are in lower case; the body is without the framing of chunks."""

    status: int
    reason: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> str:
        """All values of a header in one text; empty where it is absent."""
        return ", ".join(value for key, value in self.headers if key == name)


@dataclass(frozen=True)
class Exchange:
    """One request and the recorded response."""

    name: str
    request: Request
    response: Response


@cache
def exchanges() -> dict[str, Exchange]:
    """All exchanges by their names, in recorded order."""
    with FILE.open(encoding="utf-8", newline="\n") as lines:
        return {exchange.name: exchange for exchange in map(_exchange, lines)}


def _exchange(line: str) -> Exchange:
    name, request, response = json.loads(line)
    head, blank, body = request.partition("\r\n\r\n")
    return Exchange(name, Request(head + blank, body.encode()), parse_response(response))


def parse_response(text: str) -> Response:
    """Parse a recorded response, whose head has Unix line ends."""
    head, _, body = text.partition("\n\n")
    status, *lines = head.split("\n")
    _, code, reason = status.split(" ", 2)
    pairs = (line.partition(": ")[::2] for line in lines)
    return Response(int(code), reason, tuple((key.lower(), value) for key, value in pairs), body.encode())


def _packed(folder: Path) -> Iterator[str]:
    """Yield the lines of exchanges.jsonl. Names tell the order of exchanges within a second, dates that of seconds."""
    found: list[tuple[datetime, str]] = []
    moment = datetime.fromtimestamp(0, UTC)
    for path in sorted(folder.glob("*.request")):
        request = path.read_bytes().decode()
        response = path.with_suffix(".http").read_bytes().decode()
        if dated := re.search(r"^Date: (.*?)\r?$", response, re.MULTILINE):
            moment = parsedate_to_datetime(dated[1])
        found.append((moment, json.dumps([path.stem, request, response], ensure_ascii=False)))
    return (line for _, line in sorted(found, key=lambda pair: pair[0]))


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in _packed(Path(sys.argv[1])))
