"""What a rule about differences is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from replay.comparison import Difference, differences
from replay.recording import Exchange, Response, exchanges

Predicate = Callable[[Exchange, Response, Difference], bool]
"""Whether a rule explains a difference between the exchange and the actual response."""


@dataclass(frozen=True)
class Deviation:
    """One rule. `reference` is a section of docs/compatibility.md or of the contract that was written from Ollama."""

    id: str
    text: str
    reference: str
    explains: Predicate


def error_of(response: Response) -> str:
    """The text of an error, whatever the shape of the API."""
    try:
        error = json.loads(response.body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return ""


_ACCEPTED = "200_chat_nonstream"
_OF_THE_PROMPT = {"body.prompt_eval_count", "body.prompt_eval_cached_count"}
"""What another prompt may change in a reply; the second is in newer Ollamas only."""
WHOLE = {"status", "body", "framing", "header content-type"}
"""Where a reply differs from an error."""


def refused(error: str, *, over: str | None = None) -> Predicate:
    """We answer 400 with this error; Ollama answers, or gives the error `over`. Both are patterns."""

    def explains(exchange: Exchange, actual: Response, difference: Difference) -> bool:
        known = exchange.response.status == 200 if over is None else re.fullmatch(over, error_of(exchange.response))
        refuses = actual.status == 400 and re.fullmatch(error, error_of(actual)) is not None
        return bool(known) and refuses and difference.where in {*WHOLE, "body.error", "body.error.message"}

    return explains


def accepted(error: str) -> Predicate:
    """Ollama answers 400 with this error (a pattern); we answer as to a chat that it accepts."""

    def explains(exchange: Exchange, actual: Response, difference: Difference) -> bool:
        if exchange.response.status != 400 or not re.fullmatch(error, error_of(exchange.response)):
            return False
        accepted = Exchange(exchange.name, exchange.request, exchanges()[_ACCEPTED].response)
        left = {left.where: left.actual for left in differences(accepted, actual)}
        if left.get("body.model") == json.dumps(exchange.request.fields.get("model")):
            del left["body.model"]
        return left.keys() <= _OF_THE_PROMPT and difference.where in WHOLE

    return explains


def at(*patterns: str, recorded: str | None = None, actual: str | None = None) -> Predicate:
    """The difference is at one of these places, and the values match these patterns; "" matches nothing at all."""

    def explains(exchange: Exchange, response: Response, difference: Difference) -> bool:
        return (
            any(re.fullmatch(pattern, difference.where) for pattern in patterns)
            and (recorded is None or re.fullmatch(recorded, difference.recorded or "") is not None)
            and (actual is None or re.fullmatch(actual, difference.actual or "") is not None)
        )

    return explains


def any_of(*rules: Predicate) -> Predicate:
    return lambda exchange, response, difference: any(rule(exchange, response, difference) for rule in rules)


def on(path: str, rule: Predicate) -> Predicate:
    return lambda exchange, response, difference: (
        re.fullmatch(path, exchange.request.path) is not None and rule(exchange, response, difference)
    )
