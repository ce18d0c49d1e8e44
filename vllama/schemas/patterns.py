"""Regular expressions of `pattern`, rewritten into the few constructs that all grammars understand.

JSON Schema's patterns are ECMAScript's and match anywhere in a string. Grammars match the whole string, ignore some
assertions and put characters into JSON text as they are. The rewritten pattern matches the whole string, has only
sets of characters, groups, alternatives and repetition, and leaves out quotes, backslashes and control characters,
which JSON text has to escape.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache, lru_cache
from threading import Lock

from cachetools import LRUCache, cached

from vllama.errors import SchemaError

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint ranges of code points, both ends included."""

_LAST = sys.maxunicode
_MOST_CHARACTERS = 20_000
"""Maximum characters of a pattern in a schema; longer ones are relaxed."""
_MOST_WRITTEN = 100_000
"""Maximum characters of a rewritten pattern, and of one that goes to the engine as it is."""
_MOST_REPEATS = 10_000
_MOST_COPIES = 500
"""Maximum number of copies of its innermost part that nested repetitions make; grammars are compiled from all."""
_MOST_GROUPS = 50
_MOST_STEPS = 3_000
_MOST_RANGES = 60_000
"""Maximum number of ranges of code points that a pattern's categories, such as `\\p{L}` with 650, may sum up to."""
_MOST_KEPT = 2**20
"""Maximum memory of the parsed patterns that are kept, in bytes. It is estimated by the next two numbers."""
_MEMORY_PER_CHARACTER = 320
_MEMORY_PER_RANGE = 120

_LIMITS = re.compile(r"\{([0-9]*)(,?)([0-9]*)\}")


class InvalidPattern(ValueError):
    """The text is no regular expression in any dialect; the message says why."""


class UnenforceablePattern(ValueError):
    """The pattern uses a construct that grammars lack; the message names it."""


@dataclass(frozen=True, slots=True)
class Language:
    """A rewritten pattern, and how many characters it matches; `most` is None if that is not limited."""

    text: str
    least: int
    most: int | None

    @property
    def is_empty(self) -> bool:
        """Whether nothing matches."""
        return self.most is not None and self.most < self.least

    @property
    def is_any(self) -> bool:
        """Whether only the length of a string matters."""
        return self.text == any_text(self.least, self.most).text


_NOTHING = Language("", 1, 0)


class _Edge(Enum):
    """The text beside a part of a pattern."""

    INSIDE = auto()
    """Other parts: an anchor here cannot match."""
    ANCHORED = auto()
    """The edge of the string."""
    OPEN = auto()
    """Any text, as patterns match anywhere in a string."""


@dataclass(frozen=True, slots=True)
class _Set:
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class _Anchor:
    at_start: bool


@dataclass(frozen=True, slots=True)
class _Group:
    options: tuple[tuple[_Item, ...], ...]


@dataclass(frozen=True, slots=True)
class _Item:
    atom: _Set | _Anchor | _Group
    least: int = 1
    most: int | None = 1

    @property
    def is_once(self) -> bool:
        return self.least == 1 == self.most


def language(pattern: str, shortest: int = 0, longest: int | None = None) -> Language:
    """Rewrite a pattern, and limit its repetitions to a length where it is only one set of characters, repeated.

    Raises InvalidPattern or UnenforceablePattern.
    """
    if len(pattern) > _MOST_CHARACTERS:
        raise UnenforceablePattern(f"more than {_MOST_CHARACTERS} characters")
    options = _parsed(pattern).options
    if _copies(options) > _MOST_COPIES:
        raise UnenforceablePattern(f"repetitions in repetitions that make more than {_MOST_COPIES} copies")
    if len(options) == 1 and (shortest or longest is not None):
        options = (_limited(options[0], shortest, longest),)
    return _written(options, _Edge.OPEN, _Edge.OPEN)


def check_pattern_cost(pattern: str) -> None:
    """Raise SchemaError for a pattern whose automaton would keep the engine busy for seconds."""
    if len(pattern) > _MOST_WRITTEN:
        raise SchemaError("", f"it is too large: a pattern, written out, has more than {_MOST_WRITTEN} characters")
    try:
        copies = _copies(_parsed(pattern).options)
    except (InvalidPattern, UnenforceablePattern):
        return  # the engine refuses it, or reads it in another way
    if copies > _MOST_COPIES:
        raise SchemaError("", f"a pattern repeats repetitions more than {_MOST_COPIES} times")


def any_text(shortest: int = 0, longest: int | None = None) -> Language:
    """Return the pattern of all strings of these lengths that JSON text does not escape."""
    return Language(_set_text(_ANY) + _repetition(shortest, longest), shortest, longest)


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern is somewhere in a text, in a number of steps that is limited whatever the pattern.

    Raises InvalidPattern or UnenforceablePattern, the latter also beyond the limit.
    """
    return bool(_Matching(text).ends(_parsed(pattern).options, frozenset(range(len(text) + 1))))


class _Matching:
    """Follows all ways through a pattern at once, as the set of positions in the text that they have reached."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._left = _MOST_STEPS

    def ends(self, options: Sequence[tuple[_Item, ...]], starts: frozenset[int]) -> frozenset[int]:
        """Return where a match of one of the alternatives can end that begins at one of these positions."""
        ends: set[int] = set()
        for option in options:
            at = starts
            for item in option:
                at = self._after(item, at)
            ends |= at
        return frozenset(ends)

    def _after(self, item: _Item, at: frozenset[int]) -> frozenset[int]:
        for _ in range(item.least):
            before, at = at, self._once(item.atom, at)
            if at == before:
                break
        found = at
        length = len(self._text) + 1
        for _ in range(length if item.most is None else min(item.most - item.least, length)):
            at = self._once(item.atom, at) - found
            if not at:
                break
            found |= at
        return found

    def _once(self, atom: _Set | _Anchor | _Group, at: frozenset[int]) -> frozenset[int]:
        self._left -= len(at) + 1
        if self._left < 0:
            raise UnenforceablePattern("too many steps to match it")
        if isinstance(atom, _Anchor):
            return at & {0 if atom.at_start else len(self._text)}
        if isinstance(atom, _Group):
            return self.ends(atom.options, at)
        return frozenset(
            index + 1
            for index in at
            if index < len(self._text) and any(low <= ord(self._text[index]) <= high for low, high in atom.ranges)
        )


def _limited(sequence: tuple[_Item, ...], shortest: int, longest: int | None) -> tuple[_Item, ...]:
    """Return the sequence with the lengths in its repetition, where it is anchored and has only one."""
    inner = sequence[1:-1]
    whole = len(sequence) == 3 and isinstance(sequence[0].atom, _Anchor) and isinstance(sequence[2].atom, _Anchor)
    if not whole or not isinstance(inner[0].atom, _Set):
        return sequence
    item = inner[0]
    most = longest if item.most is None else item.most if longest is None else min(item.most, longest)
    return (sequence[0], _Item(item.atom, max(item.least, shortest), most), sequence[2])


def _written(options: Sequence[tuple[_Item, ...]], start: _Edge, end: _Edge) -> Language:
    """Return the text of alternatives that stand at these edges of the whole pattern."""
    written = [language for option in options if not (language := _sequence(option, start, end)).is_empty]
    if not written:
        return _NOTHING
    text = written[0].text if len(written) == 1 else "|".join(option.text for option in written)
    mosts = [option.most for option in written]
    most = None if None in mosts else max(most for most in mosts if most is not None)
    return Language(text, min(option.least for option in written), most)


def _sequence(items: tuple[_Item, ...], start: _Edge, end: _Edge) -> Language:
    while _is_anchor(items[:1], at_start=True):
        if start is _Edge.INSIDE:
            raise UnenforceablePattern("an anchor in the middle")
        items, start = items[1:], _Edge.ANCHORED
    while _is_anchor(items[-1:], at_start=False):
        if end is _Edge.INSIDE:
            raise UnenforceablePattern("an anchor in the middle")
        items, end = items[:-1], _Edge.ANCHORED
    if not items:
        return any_text() if _Edge.OPEN in (start, end) else Language("", 0, 0)
    # An anchor inside the first or last group, as in (^a|b$), is one of the whole pattern.
    opens = start is _Edge.OPEN and not _has_anchor(items[:1])
    closes = end is _Edge.OPEN and not _has_anchor(items[-1:])
    parts: list[Language] = [any_text()] if opens else []
    for index, item in enumerate(items):
        inner_start = start if index == 0 and not opens else _Edge.INSIDE
        inner_end = end if index == len(items) - 1 and not closes else _Edge.INSIDE
        parts.append(_repeated(item, inner_start, inner_end))
    if closes:
        parts.append(any_text())
    if any(part.is_empty for part in parts):
        return _NOTHING
    mosts = [part.most for part in parts]
    most = None if None in mosts else sum(most for most in mosts if most is not None)
    if opens and closes and sum(part.least for part in parts) == 0:
        return any_text()  # what may be empty is somewhere in every string
    return Language("".join(part.text for part in parts), sum(part.least for part in parts), most)


def _repeated(item: _Item, start: _Edge, end: _Edge) -> Language:
    if isinstance(item.atom, _Anchor):
        raise UnenforceablePattern("an anchor in the middle")
    if isinstance(item.atom, _Set):
        ranges = _writable(item.atom.ranges)
        one = Language(_set_text(ranges), 1, 1) if ranges else _NOTHING
    else:
        if _has_anchor((item,)) and not item.is_once:
            raise UnenforceablePattern("a repeated anchor")
        inner = _written(item.atom.options, start, end)
        one = Language(f"({inner.text})", inner.least, inner.most)
    if one.is_empty:
        return Language("", 0, 0) if item.least == 0 else one
    if item.most is not None and item.most < item.least:
        return _NOTHING
    if max(item.least, item.most or 0) > _MOST_REPEATS:
        raise UnenforceablePattern(f"more than {_MOST_REPEATS} repetitions")
    if item.most == 0:
        return Language("", 0, 0)
    most = 0 if one.most == 0 else None if item.most is None or one.most is None else one.most * item.most
    if isinstance(item.atom, _Group) and (item.least, item.most) == (0, 1):
        return Language(f"{one.text[:-1]}|)", 0, most)  # xgrammar 0.2 reads (ab+)? as if the a could be left out
    return Language(one.text + _repetition(item.least, item.most), one.least * item.least, most)


def _copies(options: Sequence[tuple[_Item, ...]]) -> int:
    """Return how many copies of a part its repeated groups make at most; a repetition without limit is a loop."""
    most = 1
    for item in (item for option in options for item in option):
        if isinstance(item.atom, _Group):
            times = max(item.least, item.most or 1)
            inner = max(
                (max(each.least, each.most or 1) for option in item.atom.options for each in option if times > 1),
                default=1,
            )
            most = max(most, times * max(inner, _copies(item.atom.options)))
    return most


def _repetition(least: int, most: int | None) -> str:
    short = {(1, 1): "", (0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
    if short is not None:
        return short
    return f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"


def _is_anchor(items: tuple[_Item, ...], *, at_start: bool) -> bool:
    return bool(items) and isinstance(items[0].atom, _Anchor) and items[0].atom.at_start is at_start


def _has_anchor(items: Sequence[_Item]) -> bool:
    for item in items:
        if isinstance(item.atom, _Anchor):
            return True
        if isinstance(item.atom, _Group) and any(_has_anchor(option) for option in item.atom.options):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Parsed:
    options: tuple[tuple[_Item, ...], ...]
    memory: int


@cached(LRUCache(_MOST_KEPT, getsizeof=lambda parsed: parsed.memory), lock=Lock())
def _parsed(pattern: str) -> _Parsed:
    if len(pattern) > _MOST_WRITTEN:
        raise UnenforceablePattern(f"more than {_MOST_WRITTEN} characters")
    parser = _Parser(pattern)
    return _Parsed(parser.parse(), _MEMORY_PER_CHARACTER * len(pattern) + _MEMORY_PER_RANGE * parser.ranges)


class _Parser:
    """Reads ECMAScript's syntax, and names of groups as Python spells them."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._groups = self.ranges = 0

    def parse(self) -> tuple[tuple[_Item, ...], ...]:
        """Read the whole pattern. Raises InvalidPattern or UnenforceablePattern."""
        options = self._alternatives()
        if self._at < len(self._pattern):
            raise InvalidPattern(f"unmatched ')' at character {self._at}")
        return options

    def _alternatives(self) -> tuple[tuple[_Item, ...], ...]:
        options: list[tuple[_Item, ...]] = []
        items: list[_Item] = []
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            if self._pattern[self._at] == "|":
                self._at += 1
                options.append(tuple(items))
                items = []
            else:
                items.append(self._item())
        return (*options, tuple(items))

    def _item(self) -> _Item:
        begin = self._at
        atom = self._atom()
        limits = self._limits()
        if limits is None:
            return _Item(atom)
        if isinstance(atom, _Anchor):
            raise InvalidPattern(f"nothing to repeat at character {begin}")
        if self._peek() == "?":
            self._at += 1  # laziness changes what is captured, not what matches
        elif self._peek() == "+":
            raise UnenforceablePattern("a possessive quantifier")
        elif self._peek() == "*" or self._limits_follow():
            raise InvalidPattern(f"nothing to repeat at character {self._at}")
        return _Item(atom, *limits)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _limits_follow(self) -> bool:
        before = self._at
        found = self._limits() is not None
        self._at = before
        return found

    def _limits(self) -> tuple[int, int | None] | None:
        sign = self._peek()
        if sign in ("*", "+", "?") and sign:
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        stated = _LIMITS.match(self._pattern, self._at)
        least, comma, most = stated.groups() if stated else ("", "", "")
        if stated is None or not (least or most):
            return None  # braces that repeat nothing are characters, as in ECMAScript
        if len(least) > 9 or len(most) > 9:
            raise UnenforceablePattern(f"more than {_MOST_REPEATS} repetitions")
        if not least:
            raise UnenforceablePattern("a repetition without a lower limit")
        self._at = stated.end()
        limits = int(least), int(most) if most else None if comma else int(least)
        if limits[1] is not None and limits[1] < limits[0]:
            raise InvalidPattern(f"the limits of {{{least},{most}}} are in the wrong order")
        return limits

    def _atom(self) -> _Set | _Anchor | _Group:
        character = self._pattern[self._at]
        self._at += 1
        if character in "^$":
            return _Anchor(at_start=character == "^")
        if character == "(":
            return self._group()
        if character == "[":
            return _Set(self._class())
        if character == ".":
            return _Set(_without(((0, _LAST),), _LINE_ENDS))
        if character in "*+?":
            raise InvalidPattern(f"nothing to repeat at character {self._at - 1}")
        if character == "\\":
            if self._peek() in ("b", "B") and self._peek():
                raise UnenforceablePattern("a word boundary")
            return _Set(self._escape())
        return _Set(_one(character))

    def _group(self) -> _Group:
        begin = self._at - 1
        if self._peek() == "?":
            self._at += 1
            self._skip_group_name()
        self._groups += 1
        if self._groups > _MOST_GROUPS:
            raise UnenforceablePattern(f"more than {_MOST_GROUPS} groups")
        options = self._alternatives()
        if self._peek() != ")":
            raise InvalidPattern(f"the group at character {begin} is not closed")
        self._at += 1
        return _Group(options)

    def _skip_group_name(self) -> None:
        rest = self._pattern[self._at :]
        if rest.startswith(":"):
            self._at += 1
        elif rest.startswith(("=", "!", "<=", "<!")):
            raise UnenforceablePattern("a lookaround assertion")
        elif rest.startswith(("<", "P<")):
            end = self._pattern.find(">", self._at)
            if end < 0:
                raise InvalidPattern(f"the name of a group at character {self._at} is not closed")
            self._at = end + 1
        else:
            raise UnenforceablePattern(f"(?{rest[:1]}")

    def _class(self) -> Ranges:
        begin = self._at - 1
        is_negated = self._peek() == "^"
        self._at += is_negated
        found: list[tuple[int, int]] = []
        while self._peek() != "]":
            if not self._peek():
                raise InvalidPattern(f"the character class at character {begin} is not closed")
            if self._pattern.startswith("[:", self._at):
                raise UnenforceablePattern("a POSIX character class")
            low = self._member()
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", "") and _is_one(low):
                self._at += 1
                high = self._member()
                if not _is_one(high):
                    found += [*low, *_one("-"), *high]
                    continue
                if high[0][0] < low[0][0]:
                    raise InvalidPattern(f"a range in the character class at character {begin} is in the wrong order")
                found.append((low[0][0], high[0][0]))
            else:
                found += low
        self._at += 1
        ranges = _merged(found)
        return _without(((0, _LAST),), ranges) if is_negated else ranges

    def _member(self) -> Ranges:
        character = self._peek()
        self._at += 1
        if character != "\\":
            return _one(character)
        if self._peek() == "b":
            self._at += 1
            return ((8, 8),)
        return self._escape()

    def _escape(self) -> Ranges:
        letter = self._peek()
        if not letter:
            raise InvalidPattern("it ends with a backslash")
        self._at += 1
        if letter in _SETS:
            return _SETS[letter]
        if letter in "pP":
            ranges = self._property(is_negated=letter == "P")
            self.ranges += len(ranges)
            if self.ranges > _MOST_RANGES:
                raise UnenforceablePattern(f"categories of more than {_MOST_RANGES} ranges of characters")
            return ranges
        if letter in _CONTROLS:
            return ((_CONTROLS[letter],) * 2,)
        if letter == "c":
            control = self._peek()
            self._at += 1
            return ((ord(control) % 32,) * 2,) if control.isascii() and control.isalpha() else ()
        if letter in "xu":
            return self._code(4 if letter == "u" else 2, letter)
        if (letter.isdigit() and letter != "0") or letter == "k":
            raise UnenforceablePattern("a reference to a group")
        if letter in "AZzGQER":
            raise UnenforceablePattern(f"\\{letter}")
        return ((0, 0),) if letter == "0" else _one(letter)

    def _code(self, digits: int, letter: str) -> Ranges:
        if self._peek() == "{":
            end = self._pattern.find("}", self._at)
            text, after = self._pattern[self._at + 1 : max(end, self._at)], end + 1
        else:
            text, after = self._pattern[self._at : self._at + digits], self._at + digits
            if len(text) < digits:
                return _one(letter)
        try:
            code = int(text, 16)
        except ValueError:
            return _one(letter)  # as in ECMAScript: \x without digits is an x
        self._at = after
        if 0xD800 <= code < 0xDC00 and self._pattern.startswith("\\u", self._at):
            low = self._pattern[self._at + 2 : self._at + 6]
            if len(low) == 4 and low[:1] in "dD":
                self._at += 6
                code = 0x10000 + ((code - 0xD800) << 10) + (int(low, 16) - 0xDC00)
        if code > _LAST:
            raise InvalidPattern(f"there is no character {text}")
        return ((code, code),)

    def _property(self, *, is_negated: bool) -> Ranges:
        end = self._pattern.find("}", self._at)
        name = self._pattern[self._at + 1 : end] if self._peek() == "{" and end > 0 else ""
        category = _CATEGORIES.get(name.lower().removeprefix("general_category=").removeprefix("gc="), name)
        if category not in _CATEGORY_NAMES:
            raise UnenforceablePattern(f"\\p{{{name}}}")
        self._at = end + 1
        ranges = _of_category(category)
        return _without(((0, _LAST),), ranges) if is_negated else ranges


_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "a": 7, "e": 27}
_CATEGORIES = {
    "letter": "L", "lowercase_letter": "Ll", "uppercase_letter": "Lu", "number": "N", "decimal_number": "Nd",
    "digit": "Nd", "punctuation": "P", "symbol": "S", "separator": "Z", "mark": "M",
}  # fmt: skip
_KINDS_OF_CATEGORIES = {"L": "ultmo", "M": "cen", "N": "dlo", "P": "cdseifo", "S": "mcko", "Z": "slp", "C": "cfson"}

# Other names would each take a search through all of Unicode, which finds nothing.
_CATEGORY_NAMES = frozenset(letter + kind for letter, kinds in _KINDS_OF_CATEGORIES.items() for kind in ("", *kinds))


@cache
def _of_category(category: str) -> Ranges:
    """Return the characters of a general category of Unicode, such as L or Lu."""
    found = (code for code in range(_LAST + 1) if unicodedata.category(chr(code)).startswith(category))
    return _merged((code, code) for code in found)


def _one(character: str) -> Ranges:
    return ((ord(character), ord(character)),)


def _is_one(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _merged(ranges: Iterator[tuple[int, int]] | Sequence[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _without(ranges: Ranges, removed: Ranges) -> Ranges:
    kept: list[tuple[int, int]] = []
    for low, high in ranges:
        begin = low
        for first, last in removed:
            if last < begin or first > high:
                continue
            if first > begin:
                kept.append((begin, first - 1))
            begin = last + 1
        if begin <= high:
            kept.append((begin, high))
    return tuple(kept)


_ESCAPED_IN_JSON: Ranges = ((0, 0x1F), (ord('"'), ord('"')), (ord("\\"), ord("\\")), (0x7F, 0x7F), (0xD800, 0xDFFF))
_LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
_ANY: Ranges = _without(((0, _LAST),), _ESCAPED_IN_JSON)


@lru_cache(maxsize=256)
def _writable(ranges: Ranges) -> Ranges:
    """Return what JSON text writes as it is; what it escapes, grammars cannot match."""
    return _without(ranges, _ESCAPED_IN_JSON)


_DIGITS: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = (
    (9, 13), (32, 32), (160, 160), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
    (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
_SETS = {
    name: ranges
    for letter, inside in (("d", _DIGITS), ("w", _WORD), ("s", _SPACE))
    for name, ranges in ((letter, inside), (letter.upper(), _without(((0, _LAST),), inside)))
}


@lru_cache(maxsize=256)
def _set_text(ranges: Ranges) -> str:
    if _is_one(ranges):
        return _escaped(ranges[0][0], "\\^$.|?*+()[]{}/")
    if ranges == _ANY:
        return '[^"\\\\\\x00-\\x1f\\x7f]'
    return "[" + "".join(_range_text(low, high) for low, high in ranges) + "]"


def _range_text(low: int, high: int) -> str:
    first, last = (_escaped(code, "\\^-[]") for code in (low, high))
    return first if low == high else f"{first}{last}" if high == low + 1 else f"{first}-{last}"


def _escaped(code: int, special: str) -> str:
    return "\\" + chr(code) if chr(code) in special else chr(code)
