"""Reads frozen dataclasses back from JSON, and refuses what does not fit; orjson writes them as they are."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vllama.errors import RequestError

T = TypeVar("T")


class BadResult(RequestError):
    """The file is no result of a bench, or one of another version."""


def read(kind: type[T], value: Any, where: str) -> T:
    """Return the parsed JSON as this dataclass. Raises BadResult, which begins with the place: `where` and a path.

    Fields may have the types of JSON, tuples, dicts with text as keys, Literal, optional ones, and other dataclasses.
    """
    result: T = _read(kind, value, where)
    return result


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _read(kind: Any, value: Any, where: str) -> Any:
    """Return the value as this type; every container is rebuilt, so nothing of a wrong type gets in."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in {Union, UnionType}:
        return None if value is None else _read(next(a for a in arguments if a is not NoneType), value, where)
    if origin is tuple and isinstance(value, list):
        return _read_tuple(arguments, value, where)
    if origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal and value in arguments:
        return value
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return _read_record(kind, value, where)
    if kind is float and type(value) in {int, float}:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    message = f"{where}: {str(value)[:60]!r} is not {getattr(kind, '__name__', None) or kind}"
    raise BadResult(message)


def _read_tuple(arguments: tuple[Any, ...], value: list[Any], where: str) -> tuple[Any, ...]:
    if arguments[-1] is Ellipsis:
        if arguments[0] is int and all(type(item) is int for item in value):
            return tuple(value)  # most of a result: the arrivals of chunks
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(arguments) != len(value):
        message = f"{where}: {len(value)} entries, not {len(arguments)}"
        raise BadResult(message)
    return tuple(
        _read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
    )


def _read_record(cls: type, value: dict[str, Any], where: str) -> Any:
    hints = _hints(cls)
    if unknown := value.keys() - hints.keys():
        message = f"{where}: unknown {', '.join(sorted(unknown))}"
        raise BadResult(message)
    missing = [
        f.name for f in fields(cls) if f.name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        message = f"{where}: {', '.join(missing)} missing"
        raise BadResult(message)
    return cls(**{key: _read(hints[key], item, f"{where}.{key}") for key, item in value.items()})
