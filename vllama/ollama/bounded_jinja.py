"""Jinja's sandbox with bounds: templates whose code counts what it does (vllama.ollama.template_budget).

Jinja's own sandbox keeps a template from reaching Python's objects, but lets it compute for ever, also while it is
compiled, where constant expressions are evaluated. Here nothing is evaluated while compiling, and the generated code
counts turns of loops, calls, operators and output. Facts about Jinja (3.1): `Environment.code_generator_class`,
`template_class`, `intercepted_binops` and `call_binop` are its public extension points.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from vllama.ollama.template_budget import Budget, Budgets, TemplateTooCostly

budgets = Budgets()

_STEP = object()
"""The constant that marks a statement which counts a step; no template can write it."""

_WIDEST = 10_000
"""Largest width, count or precision in an argument of a filter or a method of a text."""

_SMALL = frozenset({"-", "//", "%"})
"""Operators whose results are hardly larger than their operands, where these are numbers."""

_FORMAT = re.compile(r"\d{5}|[*{\[]")
"""Parts that a format must not have between its marks: long numbers, and widths that come from arguments."""
_PERCENT = re.compile(r"%(?:\([^)]*\))?([^a-zA-Z%]*)")
_BRACES = re.compile(r"\{[^{}:!]*(?:![a-z])?:([^}]*)")

_SCALAR = (nodes.Const, nodes.Compare, nodes.Test, nodes.Not, nodes.Sub, nodes.Mod)
"""Expressions that are no list, or raise: a comparison with one of them ends soon."""


class BoundedTemplate(Template):
    """A template; each rendering has a budget of its own."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Render the template. Raises TemplateTooCostly besides Jinja's errors."""
        budgets.begin()
        return super().render(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        """Yield the pieces of the text. Raises TemplateTooCostly besides Jinja's errors."""
        budgets.begin()
        return super().generate(*args, **kwargs)


class _BoundedCode(CodeGenerator):
    """The compiler; what it generates counts its steps and its texts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.optimizer = None

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:  # noqa: N802 - as in Jinja
        budgets.begin()
        for part in list(node.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block))):
            part.body.insert(0, nodes.ExprStmt(nodes.Const(_STEP), lineno=part.lineno))  # type: ignore[attr-defined]
        super().visit_Template(node, frame)

    def visit_ExprStmt(self, node: nodes.ExprStmt, frame: Frame) -> None:  # noqa: N802 - as in Jinja
        if isinstance(node.node, nodes.Const) and node.node.value is _STEP:
            self.writeline("environment.step()")
        else:
            super().visit_ExprStmt(node, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        del node, frame, finalize
        raise nodes.Impossible  # text between the tags is counted, too

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        super()._output_child_pre(node, frame, finalize)
        self.write("environment.printed(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")
        super()._output_child_post(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - as in Jinja
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 - as in Jinja
        self.write("environment.added(")
        self.visit(node.left, frame)
        self.write(", ")
        self.visit(node.right, frame)
        self.write(")")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802 - as in Jinja
        # A comparison with a constant ends soon; that of two nested lists may not.
        is_open = not any(isinstance(part, _SCALAR) for part in (node.expr, *(op.expr for op in node.ops)))
        self.write("(")
        self.write("environment.weighed(" if is_open else "")
        self.visit(node.expr, frame)
        self.write(")" if is_open else "")
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of all templates that models and clients bring."""

    code_generator_class = _BoundedCode
    template_class = BoundedTemplate
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "optimized": False})
        self.filters = _Filters(self.filters)
        self.globals.pop("lipsum", None)

    def step(self) -> None:
        """Count a step of generated code."""
        budgets.current.step()

    def printed(self, value: Any) -> Any:
        """Count a value that becomes a part of the output."""
        if isinstance(value, str):
            return budgets.current.output(value)
        return budgets.current.output(str(_plain(value, budgets.current)))

    def joined(self, parts: tuple[Any, ...]) -> str:
        """Return the parts as one text: the operator `~`."""
        budget = budgets.current
        texts = [part if isinstance(part, str) else str(_plain(part, budget)) for part in parts]
        budget.allow(sum(map(len, texts)))
        return str(budget.made("".join(texts)))

    def weighed(self, value: Any) -> Any:
        """Return a value that is to be compared."""
        return value if isinstance(value, str) else _plain(value, budgets.current, is_compared=True)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return what an operator makes of two values. Raises TemplateTooCostly before it makes too much."""
        if operator in _SMALL and isinstance(left, int) and isinstance(right, int):
            return super().call_binop(context, operator, left, right)
        budget = budgets.current
        _check_operation(budget, operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def added(self, left: Any, right: Any) -> Any:
        """Return the sum of two values: the operator `+`, which joins most texts of a prompt."""
        return budgets.current.made(left + right)  # twice as long as what is allowed, at most

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063 - as Jinja's
        """Call a function, a macro or a method. Raises TemplateTooCostly before it makes too much."""
        budget = budgets.current
        method = __obj
        if isinstance(method, types.FunctionType):
            method = getattr(method, "__wrapped__", method)  # Jinja wraps `format`
        if isinstance(method, types.BuiltinMethodType) and isinstance(
            method.__self__, str | bytes | list | tuple | int
        ):
            _check_method(budget, method.__name__, method.__self__, (*args, *kwargs.values()))
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Apply a filter by its name, as `map` does for each item."""
        budgets.current.step()
        return super().call_filter(name, *args, **kwargs)

    def call_test(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Apply a test by its name, as `select` does for each item."""
        budgets.current.step()
        return super().call_test(name, *args, **kwargs)


class _Filters(dict[str, Callable[..., Any]]):
    """Filters by name, each with a check of its arguments and its result, also those that are added later."""

    def __init__(self, filters: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        for name, call in filters.items():
            self[name] = call

    def __setitem__(self, name: str, call: Callable[..., Any]) -> None:
        super().__setitem__(name, _bounded(name, call))

    def copy(self) -> _Filters:
        """Return another table with the same filters."""
        other = _Filters({})
        dict.update(other, self)
        return other


_WITH_WIDTHS = frozenset(
    {"center", "indent", "wordwrap", "batch", "slice", "round", "filesizeformat", "urlize", "tojson"}
)
_METHODS_WITH_WIDTHS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes"})


def _bounded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter with its checks; Jinja's mark for filters that want the environment first is kept."""
    first = 1 if hasattr(call, "jinja_pass_arg") else 0

    @wraps(call)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget = budgets.current
        value = args[first] if len(args) > first else ""
        others = (*args[first + 1 :], *kwargs.values())
        if isinstance(value, types.GeneratorType):
            args = (*args[:first], budget.counted(value), *args[first + 1 :])
        else:
            _plain(value, budget)
        _check_filter(budget, name, value, others)
        return budget.made(call(*args, **kwargs))

    return bounded


def _plain(value: Any, budget: Budget, *, is_compared: bool = False) -> Any:
    """Return a value that may be printed or compared, because it is not too heavy."""
    if isinstance(value, list | tuple | dict) or (isinstance(value, Namespace) and not is_compared):
        budget.weigh(value)
    return value


def _check_filter(budget: Budget, name: str, value: Any, others: tuple[Any, ...]) -> None:
    if name in _WITH_WIDTHS:
        for other in others:
            _check_width(other)
    for other in others:
        _plain(other, budget)
    numbers = [abs(other) for other in others if isinstance(other, int)]
    size = _size(value)
    if name == "indent":
        budget.allow(size + str(value).count("\n") * max([4, *numbers, *map(_size, others)]))
    elif name == "replace" and len(others) > 1:
        _check_replacement(budget, str(value), str(others[0]), str(others[1]))
    elif name == "join":
        budget.allow(budget.weigh(value) + size * max([0, *map(_size, others)]) if size else 0)
    elif name == "format":
        _check_percent(budget, str(value), others)
    elif name in {"tojson", "wordwrap"}:
        budget.allow(budget.weigh(value) * (1 + max([0, *numbers, *map(_size, others)])))
    elif name in {"batch", "slice"}:
        budget.allow(size + max([0, *numbers]))


def _check_method(budget: Budget, name: str, owner: Any, others: tuple[Any, ...]) -> None:
    """Check a method of a text, a list or a number."""
    for other in others:
        _plain(other, budget)
        if name in _METHODS_WITH_WIDTHS:
            _check_width(other)
    if isinstance(owner, list | tuple):
        budget.weigh(owner)  # `index` and `count` compare its items
        return
    if name in {"format", "format_map"}:
        _check_braces(budget, str(owner), others)
        return
    size = _size(owner)
    if name == "replace" and len(others) > 1:
        _check_replacement(budget, owner, others[0], others[1])
    elif name == "join":
        budget.allow(sum(budget.weigh(other) + size * _size(other) for other in others))
    elif name == "expandtabs":
        budget.allow(size * max([8, *(other for other in others if isinstance(other, int))]))
    elif name == "translate":
        budget.allow(size * max([1, *(budget.weigh(other) for other in others)]))


def _check_operation(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Raise TemplateTooCostly where an operator would make too much of its operands."""
    if isinstance(left, int) and isinstance(right, int):
        if operator == "**":
            budget.allow_bits(left.bit_length() * abs(right))
        return
    if operator == "*":
        budget.allow(_size(left) * max(right, 0) if isinstance(right, int) else 0)
        budget.allow(_size(right) * max(left, 0) if isinstance(left, int) else 0)
    elif operator == "%" and isinstance(left, str):
        _check_percent(budget, left, (right,))


def _check_replacement(budget: Budget, text: Any, old: Any, new: Any) -> None:
    most = (len(text) + 1) * max(1, _size(new))
    try:
        budget.allow(most)
    except TemplateTooCostly:  # count only where it matters
        budget.allow(len(text) + text.count(old) * _size(new))


def _check_percent(budget: Budget, text: str, values: tuple[Any, ...]) -> None:
    _check_formats(_PERCENT, text)
    budget.allow(len(text) + text.count("%") * (_WIDEST // 10) + sum(map(budget.weigh, values)) * 6)


def _check_braces(budget: Budget, text: str, values: tuple[Any, ...]) -> None:
    _check_formats(_BRACES, text)
    budget.allow(len(text) + text.count("{") * max([0, *map(budget.weigh, values)]))


def _check_formats(pattern: re.Pattern[str], text: str) -> None:
    if any(_FORMAT.search(found) for found in pattern.findall(text)):
        raise TemplateTooCostly("the template uses a format with a width that is too large or not fixed")


def _check_width(value: Any) -> None:
    if isinstance(value, int) and abs(value) > _WIDEST:
        raise TemplateTooCostly(f"the template uses the number {value if abs(value) < 1e18 else '…'} as a width")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0
