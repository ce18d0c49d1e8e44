"""Grammars of JSON with bounded white space and digits, as llama.cpp's grammars have it.

vLLM lets a model write as much white space between the parts of JSON as it likes, and as many digits in a number; small
models fill the context with them. Here white space is one blank, or a line end and indentation, as in llama.cpp
(`common/json-schema-to-grammar.cpp`). vLLM's own switch, `disable_any_whitespace`, allows none, and is left as it is.

Written against vLLM 0.32 with xgrammar 0.2.8 and llguidance 1.7 (`tests/worker/test_grammars.py` names them). Only this
file uses these internals: `XgrammarBackend.compile_grammar`, `serialize_guidance_grammar`, and the text of xgrammar's
grammars. outlines allows one blank and lm-format-enforcer twelve characters by themselves.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable
from contextvars import ContextVar
from threading import Lock
from typing import Any

from cachetools import LRUCache, cached

from vllama.errors import SchemaError
from vllama.schemas import check_cost, check_pattern_cost, rewrite
from vllama.worker.limited_strings import LimitedStrings
from vllama.worker.plugin_selection import is_selected

log = logging.getLogger(__name__)

_MARK = 7919
"""A maximum length of white space by which that is found in a grammar's text: the number occurs nowhere else."""

# String literals and character classes are skipped: they may contain the same text.
_PARTS = re.compile(
    r'"(?:\\.|[^"\\])*"'
    rf"|(?P<space>whitespace(?:_\d+)?\{{0, {_MARK}\}})"
    r"|(?P<integer>\[0-9\]\*)|(?P<digits>basic_number_digits\{1, -1\})"
    r"|(?P<characters>\w+_characters\{(?P<least>\d+), (?P<most>-?\d+)\})"
    r"|\[(?:\\.|[^\]\\])*\]"
)
# As many digits as 64-bit integers and floating-point numbers have: small models write on without end.
_REPLACEMENTS = {
    "space": "vllama_space",
    "integer": "[0-9]{0, 18}",
    "digits": "basic_number_digits{1, 17}",
}
_RULES = r"""
vllama_space ::= "" | " " | "\n" "\n"? [ \t]{0, 20}
"""

_SPACE = r"( |\n\n?[ \t]{0,20})?"
_GUIDANCE = {"whitespace_flexible": False, "item_separator": f"{_SPACE},{_SPACE}", "key_separator": ": ?"}
"""llguidance bounds white space only beside separators: none is left after an opening bracket."""

_PLAIN_JSON: dict[str, tuple[Any, ...]] = {"style": (None, "json"), "any_order": (None, False), "excludes": (None, [])}
"""Fields of those parts of a structural tag that are JSON as everywhere else, with their values."""

_MOST_KEPT = 64 * 2**20
"""Maximum characters of the grammars that are kept."""
_MOST_TEXT = 100_000
"""Maximum characters of a grammar, a regular expression or a list of choices in a request: a second to compile."""

_SHORT_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|.)", re.DOTALL)

Compile = Callable[..., Any]

is_compiled: ContextVar[bool] = ContextVar("is_compiled", default=False)
"""Whether xgrammar has compiled the constraint of the request (vllama.worker.grammar_trials)."""


def register() -> None:
    """Bound white space in this process; the second time does nothing."""
    if not is_selected():
        return
    from vllm.v1.structured_output import backend_guidance, backend_xgrammar
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    if not hasattr(XgrammarBackend.compile_grammar, "__wrapped__"):
        XgrammarBackend.compile_grammar = bounding_xgrammar(XgrammarBackend.compile_grammar)
        backend_guidance.serialize_guidance_grammar = bounding_guidance(backend_guidance.serialize_guidance_grammar)
        validate = backend_xgrammar.validate_xgrammar_grammar
        backend_xgrammar.validate_xgrammar_grammar = bounding_cost(validate, validate_compiled_xgrammar)
        backend_guidance.validate_guidance_grammar = bounding_cost(backend_guidance.validate_guidance_grammar)


def bounding_xgrammar(compile_grammar: Compile) -> Compile:
    """Return xgrammar's compilation with bounded white space in JSON."""
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions as Kind

    @functools.wraps(compile_grammar)
    def bounded(self: Any, kind: Kind, specification: str, *rest: Any, **others: Any) -> Any:
        if kind in (Kind.JSON, Kind.JSON_OBJECT) and not self.disable_any_whitespace:
            schema = specification if kind == Kind.JSON else '{"type": "object"}'
            grammar = bounded_grammar(schema)
            if grammar is not None:
                return compile_grammar(self, Kind.GRAMMAR, grammar, *rest, **others)
        if kind == Kind.STRUCTURAL_TAG and not self.disable_any_whitespace:
            specification = json.dumps(_bounded_tag(json.loads(specification)))
        return compile_grammar(self, kind, specification, *rest, **others)

    return bounded


def _bounded_tag(part: Any) -> Any:
    """Return a structural tag, with which vLLM enforces strict tools, whose arguments have bounded white space."""
    if isinstance(part, list):
        return [_bounded_tag(item) for item in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") != "json_schema":
        return {name: _bounded_tag(value) for name, value in part.items()}
    schema = part.get("json_schema")
    if not isinstance(schema, dict) or any(part.get(name) not in usual for name, usual in _PLAIN_JSON.items()):
        return part
    try:
        grammar = bounded_grammar(json.dumps(rewrite(schema).schema))
    except (SchemaError, RuntimeError):  # vLLM has checked the schema itself: it may be served as it is
        return part
    return {"type": "grammar", "grammar": grammar} if grammar else part


def bounding_cost(validate: Compile, validate_compiled: Compile | None = None) -> Compile:
    """Return vLLM's validation of a request's constraint, which the API server does, with a bound for its size.

    The engine compiles a constraint later, in threads that nothing ends: not even the client that leaves. For what
    `is_compiled` says has been compiled, `validate_compiled` is asked instead.
    """

    @functools.wraps(validate)
    def bounded(params: Any, *rest: Any, **others: Any) -> Any:
        if params.structured_outputs is not None:
            if validate_compiled is not None and is_compiled.get():
                return validate_compiled(params)
            check_constraint_cost(params.structured_outputs)
        return validate(params, *rest, **others)

    return bounded


def check_constraint_cost(constraint: Any) -> None:
    """Raise ValueError, to which vLLM answers 400, for a constraint that certainly takes too long."""
    try:
        for given in (constraint.json, constraint.structural_tag):
            _check_text_cost(given) if isinstance(given, str) else check_cost(given)
        if constraint.regex:
            check_pattern_cost(constraint.regex)
    except SchemaError as error:
        raise ValueError(str(error)) from error
    texts = (constraint.regex or "", constraint.grammar or "", *(constraint.choice or ()))
    if sum(map(len, texts)) > _MOST_TEXT:
        raise ValueError(f"the grammar is too large: it has more than {_MOST_TEXT} characters")


def validate_compiled_xgrammar(params: Any) -> None:
    """Do what is left of vLLM's `validate_xgrammar_grammar` for a constraint that compiles.

    Raises vLLM's error for a schema of which xgrammar ignores a part, so that vLLM asks its other backend.
    """
    from vllm.v1.structured_output import backend_xgrammar

    constraint = params.structured_outputs
    if constraint.choice:
        constraint.grammar, constraint.choice = backend_xgrammar.choice_as_grammar(constraint.choice), None
    elif constraint.json:
        schema = json.loads(constraint.json) if isinstance(constraint.json, str) else constraint.json
        if backend_xgrammar.has_xgrammar_unsupported_json_features(schema):
            error = getattr(backend_xgrammar, "VLLMValidationError", ValueError)
            raise error("The provided JSON schema contains features not supported by xgrammar.")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@cached(LRUCache(256), key=_digest, lock=Lock())
def _check_text_cost(text: str) -> None:
    """Raise SchemaError as `check_cost`; texts that passed lately are known."""
    check_cost(json.loads(text))


def bounding_guidance(serialize: Compile) -> Compile:
    """Return llguidance's translation with bounded white space in JSON."""
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions as Kind

    @functools.wraps(serialize)
    def bounded(kind: Kind, specification: Any, disable_any_whitespace: bool = False, *rest: Any, **others: Any) -> Any:
        if kind in (Kind.JSON, Kind.JSON_OBJECT) and not disable_any_whitespace:
            schema = {"type": "object"} if kind == Kind.JSON_OBJECT else specification
            schema = json.loads(schema) if isinstance(schema, str) else schema
            if isinstance(schema, dict):
                kind, specification = Kind.JSON, json.dumps({"x-guidance": _GUIDANCE, **schema})
        return serialize(kind, specification, disable_any_whitespace, *rest, **others)

    return bounded


_kept: LRUCache[bytes, str | None] = LRUCache(_MOST_KEPT, getsizeof=lambda grammar: 1 + len(grammar or ""))


@cached(_kept, key=_digest, lock=Lock())
def bounded_grammar(schema: str) -> str | None:
    """Return xgrammar's grammar of a schema with bounded white space; None if this xgrammar has no text to change.

    Raises RuntimeError, as xgrammar does, for a schema that it cannot translate.
    """
    import xgrammar

    try:
        text = str(xgrammar.Grammar.from_json_schema(schema, max_whitespace_cnt=_MARK))
    except TypeError:
        text = ""
    found = 0
    limited = LimitedStrings()

    def replaced(part: re.Match[str]) -> str:
        nonlocal found
        found += part.lastgroup == "space"
        if part["characters"]:  # xgrammar's own class has control characters, and no escapes
            most = int(part["most"])
            return limited.characters(int(part["least"]), None if most < 0 else most)
        return _REPLACEMENTS[part.lastgroup] if part.lastgroup else _SHORT_ESCAPE.sub(_long_escape, part[0])

    text = _PARTS.sub(replaced, text)
    if not found:
        log.warning("this version of xgrammar does not tell where white space is: it stays unbounded in JSON")
        return None
    return text + _RULES + limited.text()


def _long_escape(escape: re.Match[str]) -> str:
    r"""Return `\xef` as `\u00ef`: xgrammar prints two digits, but reads as many as follow, those of the text too."""
    return f"\\u00{escape[1]}" if escape[1] else escape[0]
