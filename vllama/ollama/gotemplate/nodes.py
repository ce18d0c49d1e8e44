"""The syntax tree of a Go template."""

from __future__ import annotations

from dataclasses import dataclass, field

Names = tuple[str, ...]
"""The names of a chain of fields: `.Function.Name` is `("Function", "Name")`."""


@dataclass(frozen=True, slots=True)
class Dot:
    """`.`: the current value of the enclosing `range` or `with`."""


@dataclass(frozen=True, slots=True)
class Root:
    """`$` and fields of the whole data."""

    names: Names


@dataclass(frozen=True, slots=True)
class Field:
    """`.Role`: fields of the dot."""

    names: Names


@dataclass(frozen=True, slots=True)
class Variable:
    """`$x` and its fields. Each declaration in the text has its own `slot`, so scopes are already resolved."""

    slot: int
    names: Names = ()


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, a number, a boolean or nil."""

    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Function:
    """A reference to a function."""

    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Fields of a pipeline in parentheses."""

    of: Pipe
    names: Names


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands, each passing its value to the next as last argument; the result is assigned to the `targets`."""

    line: int
    commands: tuple[tuple[Operand, ...], ...]
    targets: tuple[int, ...] = ()


Operand = Dot | Root | Field | Variable | Literal | Function | Chain | Pipe


@dataclass(frozen=True, slots=True)
class Text:
    """Text outside actions, already trimmed."""

    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """A pipeline whose value is printed, unless it goes into a variable."""

    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch:
    """`if` or `with`: the `arms` are tried in order, then `otherwise`."""

    keyword: str
    arms: tuple[tuple[Pipe, Nodes], ...]
    otherwise: Nodes


@dataclass(frozen=True, slots=True)
class Range:
    """`range`: the pipe's targets are index and element, or the element alone."""

    pipe: Pipe
    body: Nodes
    otherwise: Nodes


@dataclass(frozen=True, slots=True)
class Jump:
    """`break` or `continue`."""

    keyword: str


Node = Text | Action | Branch | Range | Jump
Nodes = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template."""

    nodes: Nodes
    names: frozenset[str]
    """All names of fields, at any depth."""
    reassigned: frozenset[int] = field(default_factory=frozenset)
    """Slots of variables that `=` assigns."""
