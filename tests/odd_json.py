"""JSON, and what is nearly JSON, as hypothesis strategies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Raw:
    """A piece of JSON text, or of what is nearly JSON."""

    text: str


@dataclass(frozen=True)
class Twice:
    """The two values of a field that an object has twice."""

    first: Any
    second: Any


def scalar_values(odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for values without others in them, `odd` ones among them."""
    return st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | odd


def nested_values(values: st.SearchStrategy[Any], max_leaves: int) -> st.SearchStrategy[Any]:
    """Return a strategy for such values, and for lists and objects of them."""
    return st.recursive(
        values,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=max_leaves,
    )


def text_of(value: Any) -> str:
    """Return a value as JSON, as far as it is JSON."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Twice):
        return text_of(value.first)  # where no name can stand before it
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(_member(key, item) for key, item in value.items()) + "}"
    return json.dumps(value)


def _member(key: str, value: Any) -> str:
    values = (value.first, value.second) if isinstance(value, Twice) else (value,)
    return ",".join(f"{json.dumps(key)}:{text_of(each)}" for each in values)
