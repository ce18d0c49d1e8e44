"""The functions of Go's templates and Ollama's own, as Jinja expressions.

Each function takes the values of its arguments and returns the value of the call. No argument's code occurs twice in a
result, so nesting cannot make it grow without bound. The macros that results call are in `macros`. Invalid arguments
raise ValueError with Go's message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vllama.ollama.gotemplate.values import ANY, NUMBER, TEXT, Value, item_type, quoted

Translate = Callable[[Sequence[Value]], Value]

UNTRANSLATED = frozenset({"call", "html", "js", "urlquery"})
"""Functions of Go that no model's template needs."""

MOST_WIDTH = 10_000
"""Maximum width in characters to which `printf` pads."""

_VERB = re.compile(r"%([-+# 0]*)(\*|[0-9]*)(\.[0-9]+)?(.?)", re.DOTALL)


def printed(value: Value) -> str:
    """Return the code that prints a value as Go does."""
    return value.code if value.type in {TEXT, NUMBER} else f"go_text({value.code})"


def _need(name: str, values: Sequence[Value], least: int, most: int | None = None) -> None:
    """Raise ValueError unless the number of arguments is right."""
    if most is None:
        if len(values) < least:
            raise ValueError(f"wrong number of args for {name}: want at least {least} got {len(values)}")
    elif not least <= len(values) <= most:
        raise ValueError(f"wrong number of args for {name}: want {least} got {len(values)}")


def _chosen(word: str) -> Translate:
    """Return the translation of `and` or `or`, which yields the deciding operand."""

    def translate(values: Sequence[Value]) -> Value:
        _need(word, values, 1)
        types = {value.type for value in values}
        return Value(f"({f' {word} '.join(value.code for value in values)})", types.pop() if len(types) == 1 else ANY)

    return translate


def _not(values: Sequence[Value]) -> Value:
    _need("not", values, 1, 1)
    return Value(f"(not {values[0].code})")


def _eq(values: Sequence[Value]) -> Value:
    if len(values) < 2:
        raise ValueError("missing argument for comparison")
    first, *others = (value.code for value in values)
    return Value(f"({first} == {others[0]})" if len(others) == 1 else f"({first} in [{', '.join(others)}])")


def _compared(name: str, operator: str) -> Translate:
    def translate(values: Sequence[Value]) -> Value:
        _need(name, values, 2, 2)
        return Value(f"({values[0].code} {operator} {values[1].code})")

    return translate


def _len(values: Sequence[Value]) -> Value:
    _need("len", values, 1, 1)
    if values[0].type.kind in {"list", "map"}:
        return Value(f"({values[0].code}|length)", NUMBER)
    return Value(f"(go_length({values[0].code})|int)", NUMBER)


def _index(values: Sequence[Value]) -> Value:
    """Translate `index` as in Go, except that an index out of range yields nil."""
    _need("index", values, 1)
    value = values[0]
    for at in values[1:]:
        if value.is_text:
            value = Value(f"{value.code}.encode('utf-8')[{at.code}]", NUMBER)
        elif at.is_text:
            value = Value(f"({value.code} or {{}}).get({at.code})", item_type(value.type))
        else:
            value = Value(f"{value.code}[{at.code}]", item_type(value.type))
    return value


def _slice(values: Sequence[Value]) -> Value:
    """Translate `slice` as in Go, except that bounds out of range are clamped."""
    _need("slice", values, 1, 3)
    bounds = ":".join(value.code for value in values[1:])
    part = f"[{bounds}{':' if len(values) < 3 else ''}]"
    if values[0].is_text:
        return Value(f"{values[0].code}.encode('utf-8'){part}.decode('utf-8', 'replace')", TEXT)
    return Value(f"{values[0].code}{part}", values[0].type)


def _made(code: str) -> Value:
    """Return a text value made from other text, with a limit, so that it cannot grow with every turn of a loop."""
    return Value(f"go_made({code})", TEXT)


def _json(values: Sequence[Value]) -> Value:
    _need("json", values, 1, 1)
    # A call's arguments may already be JSON text.
    macro = "go_text" if values[0].type.kind in {"map", "record"} else "go_json"
    return _made(f"{macro}({values[0].code})")


def _print(values: Sequence[Value]) -> Value:
    return _made(f"go_print([{', '.join(value.code for value in values)}])")


def _println(values: Sequence[Value]) -> Value:
    return _made(f"go_print([{', '.join(value.code for value in values)}], true)")


def _printf(values: Sequence[Value]) -> Value:
    _need("printf", values, 1)
    pattern, arguments = values[0].literal, list(values[1:])
    if pattern is None:
        raise ValueError("printf needs a literal as its format")
    pieces: list[str] = []
    at = 0
    for verb in _VERB.finditer(pattern):
        pieces += [quoted(pattern[at : verb.start()])] if verb.start() > at else []
        at = verb.end()
        if verb[0] == "%%":
            pieces.append("'%'")
            continue
        used = 2 if verb[2] == "*" else 1
        if len(arguments) < used:
            raise ValueError(f"printf has no argument for {verb[0]}")
        pieces.append(_formatted(verb, arguments[:used]))
        del arguments[:used]
    if arguments:
        raise ValueError("printf has more arguments than verbs")
    pieces += [quoted(pattern[at:])] if at < len(pattern) else []
    return _made(" ~ ".join(pieces or [quoted("")]))


def _formatted(verb: re.Match[str], arguments: Sequence[Value]) -> str:
    flags, width, precision, letter = verb[1], verb[2], verb[3] or "", verb[4]
    value = arguments[-1]
    text = printed(value)
    padding = f"[{arguments[0].code}, {MOST_WIDTH}]|min, " if width == "*" else ""
    if not (flags or width or precision):
        if letter in {"s", "v", "d", "t"}:
            return text
        if letter == "q":
            return f"({text}|tojson)"
    if len(width) < 5 and len(precision) < 5:
        if letter in {"s", "v", "t"} and set(flags) <= {"-"}:
            return f"({quoted(f'%{flags}{width}{precision}s')}|format({padding}{text}))"
        if letter and letter in "dxXoeEfFgG":
            return f"({quoted(f'%{flags}{width}{precision}{letter}')}|format({padding}{value.code}))"
    raise ValueError(f"printf's {verb[0]} is not supported")


def _current_date(_values: Sequence[Value]) -> Value:
    return Value("strftime_now('%Y-%m-%d')", TEXT)


def _yesterday_date(_values: Sequence[Value]) -> Value:
    return Value("go_yesterday()", TEXT)


def _typescript(values: Sequence[Value]) -> Value:
    _need("toTypeScriptType", values, 1, 1)
    return Value(f"go_typescript({values[0].code})", TEXT)


FUNCTIONS: dict[str, Translate] = {
    "and": _chosen("and"),
    "or": _chosen("or"),
    "not": _not,
    "eq": _eq,
    "ne": _compared("ne", "!="),
    "lt": _compared("lt", "<"),
    "le": _compared("le", "<="),
    "gt": _compared("gt", ">"),
    "ge": _compared("ge", ">="),
    "len": _len,
    "index": _index,
    "slice": _slice,
    "json": _json,
    "print": _print,
    "println": _println,
    "printf": _printf,
    "currentDate": _current_date,
    "yesterdayDate": _yesterday_date,
    "toTypeScriptType": _typescript,
}
