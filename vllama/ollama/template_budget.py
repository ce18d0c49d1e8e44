"""Limits of a chat template: processor time, the length of texts, and the weight of nested lists.

A template is a program that comes with a model. It is ended in the thread where it runs: each turn of a loop, each
call and each text that it makes is counted before memory is allocated for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import TemplateError
from jinja2.utils import Namespace

from vllama.ollama.template_limits import Limits, limits

_CREATED = 64
"""All texts that a template makes may be this many times as long as the longest one."""

_MOST_BITS = 16_384
"""Maximum bits of an integer."""

_STEP = 16
"""Cost of a step, in characters of text."""

_LOOK = 4096
"""Cost of the work between two looks at the clock, which takes as long as a step."""


class TemplateTooCostly(TemplateError):
    """A template exceeds what it may do. No repair of the messages helps against that."""


class Budget:
    """The remaining costs of one rendering."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._longest = limits.characters
        self._created = limits.characters * _CREATED
        self._printed = 0
        self._until_look = _LOOK
        self._ends = time.thread_time() + limits.seconds
        self._weights: dict[int, tuple[Any, int]] = {}  # by identity; holds the object, so that its id stays its own

    def step(self, size: int = _STEP) -> None:
        """Count a turn of a loop or a call, or a new text of this size. Raises TemplateTooCostly."""
        self._until_look -= size
        if self._until_look < 0:
            self._look(size)

    def _look(self, size: int) -> None:
        """Compare what was done with the limits. A text that is too long always leads here."""
        self.allow(size)
        self._created -= _LOOK - self._until_look
        self._until_look = _LOOK
        if self._created < 0:
            raise TemplateTooCostly("the template makes too many texts")
        if time.thread_time() > self._ends:
            raise TemplateTooCostly(f"the template computes for more than {self._limits.seconds:g} s")

    def allow(self, characters: int) -> None:
        """Raise TemplateTooCostly unless the template may make a text of this length, or a list of this length."""
        if characters > self._longest:
            raise TemplateTooCostly(f"the template makes a text or list longer than {self._longest:,}")

    def output(self, text: str) -> str:
        """Count a piece of the output, and return it. Raises TemplateTooCostly."""
        size = len(text)
        self._printed += size
        self._until_look -= size + _STEP
        if self._until_look < 0:
            self._look(self._printed)
        return text

    def made(self, value: Any) -> Any:
        """Count a new value, and return it. Raises TemplateTooCostly."""
        if isinstance(value, str | bytes | list | tuple):
            self.step(len(value) + _STEP)
        else:
            if isinstance(value, int):
                self.allow_bits(value.bit_length())
            self.step()
        return value

    def allow_bits(self, bits: int) -> None:
        """Raise TemplateTooCostly unless the template may make an integer of this many bits."""
        if bits > _MOST_BITS:
            raise TemplateTooCostly("the template computes with numbers that are too large")

    def weigh(self, value: Any) -> int:
        """Return how long the value is as text, at least; lists that contain a list twice count it twice.

        Raises TemplateTooCostly where that is too long: comparing or printing such a value would never end.
        """
        if isinstance(value, str):
            return len(value) + 1
        if isinstance(value, Namespace):  # it changes, so its weight is found anew each time
            self.step()
            total = 1 + sum(map(self.weigh, object.__getattribute__(value, "_Namespace__attrs").values()))
            self.allow(total)
            return total
        if not isinstance(value, list | tuple | dict):
            return 1
        if (known := self._weights.get(id(value))) is not None:
            return known[1]
        self.step()
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        total = 1 + sum(map(self.weigh, parts))
        self.allow(total)
        self._weights[id(value)] = (value, total)
        return total

    def counted(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield the items, each counted."""
        for item in items:
            yield self.made(item)


class Budgets(threading.local):
    """The budget of the rendering that runs in this thread; a new one where none was begun."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a rendering, or a compilation."""
        self.current = Budget(limits())
