"""What another run of the same request may change in a body, and what must be true of it all the same."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from replay.recording import Request


@dataclass(frozen=True)
class Facts:
    """A recorded value and the actual one, with the objects that they stand in."""

    request: Request
    recorded: Any
    actual: Any
    beside_recorded: Mapping[str, Any]
    beside: Mapping[str, Any]


Rule = Callable[[Facts], bool]


def varying(where: str) -> Rule | None:
    """Return what must be true of the value at this path, or None where it has to be equal to the recorded one."""
    return next((rule for pattern, rule in _RULES if pattern.fullmatch(where)), None)


def varies_in_number(where: str) -> bool:
    """Whether the model decides how many entries a list has, each like one of those recorded."""
    return _LISTS.fullmatch(where) is not None


def without_digests(text: str) -> str:
    """Return a status without the digests in it, which are those of the files of a model."""
    return _DIGESTS.sub("…", text)


_DIGESTS = re.compile(r"(?:sha256[:-])?\b[0-9a-f]{64}\b|(?<=pulling )[0-9a-f]{12}\b|(?<=pushing )[0-9a-f]{12}\b")
_GO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_MADE_UP = re.compile(r"(?:chatcmpl|cmpl|resp|msg|rs|fc|call|toolu)[-_]")
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def _moment(facts: Facts) -> bool:
    """Seconds where they were seconds; else as Go writes it, at UTC for what it made up itself."""
    if isinstance(facts.recorded, int):
        return _count(facts)
    found = _GO_TIME.fullmatch(facts.actual) if isinstance(facts.actual, str) else None
    return found is not None


def _moment_in_utc(facts: Facts) -> bool:
    return _moment(facts) and (isinstance(facts.recorded, int) or facts.actual.endswith("Z"))


def _count(facts: Facts) -> bool:
    return type(facts.actual) is int and facts.actual > 0


def _text(facts: Facts) -> bool:
    """Any text, but none where there was none; a stop string may come first or later."""
    if not (isinstance(facts.actual, str) and isinstance(facts.recorded, str)):
        return bool(facts.actual == facts.recorded)
    return bool(facts.actual) == bool(facts.recorded) or "stop" in facts.request.fields


def _number(facts: Facts) -> bool:
    """Of an event: how many came before is the model's affair."""
    return type(facts.actual) is int and facts.actual >= 0


def _id(facts: Facts) -> bool:
    """Made up, with a prefix that says what it names; else it is the name of a model."""
    found = _MADE_UP.match(facts.recorded)
    if not found:
        return bool(facts.actual == facts.recorded)
    return isinstance(facts.actual, str) and re.fullmatch(rf"{found[0]}\w[\w-]*", facts.actual) is not None


def _limit(request: Request) -> int | None:
    """The most tokens that a request asked for."""
    options = request.fields.get("options")
    limits = [
        options.get("num_predict") if isinstance(options, dict) else None,
        *(request.fields.get(name) for name in _LIMITS),
    ]
    return next((limit for limit in limits if limit is not None and limit > 0), None)


def _evaluated(facts: Facts) -> bool:
    if facts.recorded == 0:  # the usage that begins a stream
        return bool(facts.actual == 0)
    if facts.beside_recorded.get("done_reason") == facts.beside.get("done_reason") == "length":
        return bool(facts.actual == facts.recorded)
    limit = _limit(facts.request)
    return _count(facts) and (limit is None or facts.actual <= limit)


def _reason(facts: Facts) -> bool:
    """Whether a model stops by itself before the limit is its own affair."""
    if facts.actual == facts.recorded:
        return True
    return {facts.recorded, facts.actual} in ({"stop", "length"}, {"end_turn", "max_tokens"})


def _sum(facts: Facts) -> bool:
    beside = facts.beside
    parts = [
        beside.get("prompt_tokens", beside.get("input_tokens", 0)),
        beside.get("completion_tokens", beside.get("output_tokens", 0)),
    ]
    # An embedding's usage has no answer in it.
    return bool(facts.actual == sum(parts))


def _context(facts: Facts) -> bool:
    """Token ids: the prompt's, which the template and the tokenizer decide, and the answer's."""
    prompt = facts.beside_recorded.get("prompt_eval_count", 0)
    ids = facts.actual
    return _all(ids, int) and ids[:prompt] == facts.recorded[:prompt] and len(ids) >= prompt


def _vector(facts: Facts) -> bool:
    if isinstance(facts.recorded, str):
        return isinstance(facts.actual, str) and len(base64.b64decode(facts.actual, validate=True)) % 4 == 0
    if not facts.recorded:
        return bool(facts.actual == facts.recorded)
    asked = facts.request.fields.get("dimensions")
    return _all(facts.actual, float) and len(facts.actual) > 0 and asked in {None, len(facts.actual)}


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _bytes(facts: Facts) -> bool:
    return _all(facts.actual, int)


def _logprob(facts: Facts) -> bool:
    return isinstance(facts.actual, int | float) and facts.actual <= 0


def _digest(facts: Facts) -> bool:
    return isinstance(facts.actual, str) and without_digests(facts.actual) == without_digests(facts.recorded)


def _error(facts: Facts) -> bool:
    """All but the place of the store."""
    recorded, actual = (
        re.sub(r"^open /.*?/(?=blobs/|manifests/)", "open /", str(text)) for text in (facts.recorded, facts.actual)
    )
    return recorded == actual


def _modelfile(facts: Facts) -> bool:
    """All but where the weights are: in a blob, or under the model's own name."""
    recorded, actual = (
        re.sub(r"^FROM .*$", "FROM", text, flags=re.MULTILINE) for text in (facts.recorded, facts.actual)
    )
    return recorded == actual


_LISTS = re.compile(r".*\.(logprobs|logprobs\.content)|.*\.output_text\.logprobs")

_RULES: tuple[tuple[re.Pattern[str], Rule], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r".*\.(created_at)", _moment_in_utc),
        (r".*\.(modified_at|expires_at)", _moment),
        (r".*\.(created|completed_at)", _moment),
        (r".*_duration", _count),
        (r".*\.(eval_count|completion_tokens|output_tokens)", _evaluated),
        (r".*\.total_tokens", _sum),
        (r".*\.(done_reason|finish_reason|stop_reason)", _reason),
        (r".*\.context", _context),
        (r".*\.(response|content|thinking|reasoning|text|delta)", _text),
        (r".*\.(id|item_id|call_id)", _id),
        (r".*\.sequence_number", _number),
        (r".*\.token", _text),
        (r".*\.logprob", _logprob),
        (r".*\.bytes", _bytes),
        (r".*\.(embedding|embeddings\[\])", _vector),
        (r".*\.(digest|status)", _digest),
        (r".*\.(size|total|completed)", _count),
        (r"body\.modelfile", _modelfile),
        (r".*\.error", _error),
    )
)
