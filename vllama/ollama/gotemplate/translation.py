"""Translation of the syntax tree to Jinja.

Go's variables become attributes of one namespace, because Jinja's own assignments end with their loop. All text is
written as string literals, and every tag trims its surroundings, so text can never be Jinja syntax and the layout of
the result does not matter.
"""

from __future__ import annotations

import re

from vllama.ollama.gotemplate.functions import FUNCTIONS, printed
from vllama.ollama.gotemplate.lexer import failed
from vllama.ollama.gotemplate.macros import definitions
from vllama.ollama.gotemplate.nodes import (
    Action,
    Branch,
    Chain,
    Dot,
    Field,
    Function,
    Jump,
    Literal,
    Node,
    Nodes,
    Operand,
    Pipe,
    Range,
    Root,
    Template,
    Text,
    Variable,
)
from vllama.ollama.gotemplate.prologue import FILLING_IN, prologue
from vllama.ollama.gotemplate.rounds import up_to_the_reply
from vllama.ollama.gotemplate.values import ANY, NUMBER, TEXT, Type, Value, item_type, quoted, record

MOST_TURNS = 100_000
"""Maximum turns of all nested loops together; without it a template could run for days."""
MOST_NESTING = 30
"""Maximum depth of nested brackets in one expression; Jinja's parser is recursive."""

_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'", re.DOTALL)
_NO_END = "raise_exception('the loops of the template find no end')"
_ROOT = Value("root", record("root"))


def translate(template: Template) -> str:
    """Return Jinja code that renders what Ollama would. Raises TemplateError for unsupported features."""
    names = {name.lower() for name in template.names}
    in_rounds = "messages" not in names
    nodes = template.nodes
    if in_rounds and "response" not in names:
        nodes = (*nodes, Action(Pipe(0, ((Field(("Response",)),),))))
    body = _Body(template)
    if in_rounds:
        body.rounds(nodes, fills_in="Suffix" in template.names)
    else:
        body.write(nodes, _ROOT)
    program = "\n".join(body.lines)
    return definitions(program) + prologue(template.names, in_rounds=in_rounds) + program


class _Body:
    """Writer of nodes as lines of Jinja. A `dot` is the value of `.` at a node."""

    def __init__(self, template: Template) -> None:
        self.lines: list[str] = []
        self._reassigned = template.reassigned
        self._types: dict[int, Type] = {}  # variables by slot
        self._depth = 0
        self._loops = 0
        self._blocks = 0

    def rounds(self, nodes: Nodes, *, fills_in: bool) -> None:
        """Write a template without messages, which runs once per round; the last ends where the reply begins."""
        self._tag("for root in go.rounds")
        self._loops = 1
        self._tag(f"if loop.last and not {FILLING_IN}" if fills_in else "if loop.last")
        self._indented(up_to_the_reply(nodes), _ROOT)
        self._tag("else")
        self._indented(nodes, _ROOT)
        self._tag("endif")
        self._tag("endfor")

    def write(self, nodes: Nodes, dot: Value) -> None:
        """Write the nodes in order."""
        for node in nodes:
            self._node(node, dot)

    def _node(self, node: Node, dot: Value) -> None:
        match node:
            case Text(text):
                self._line(f"{{{{- {quoted(text)} -}}}}")
            case Action(pipe):
                self._action(pipe, dot)
            case Branch():
                self._branch(node, dot)
            case Range():
                self._range(node, dot)
            case Jump(keyword):
                self._tag(keyword)

    def _action(self, pipe: Pipe, dot: Value) -> None:
        value = self._pipe(pipe, dot)
        if pipe.targets:
            self._set(pipe.targets, (value,))
        else:
            self._line(f"{{{{- {self._checked(printed(value), pipe.line)} -}}}}")

    def _branch(self, branch: Branch, dot: Value) -> None:
        """Write the arms as `elif`, unless an arm sets a variable or the dot before its test."""
        open_blocks = 0
        for number, (pipe, body) in enumerate(branch.arms):
            value = self._pipe(pipe, dot)
            inner = dot
            sets = branch.keyword == "with" or pipe.targets
            if number and sets:
                self._tag("else")
            if sets:
                value = self._held(value)
                self._set(pipe.targets, (value,))
            if branch.keyword == "with":
                inner = value
            opens = not number or sets
            open_blocks += bool(opens)
            self._tag(f"{'if' if opens else 'elif'} {value.code}")
            self._indented(body, inner)
        if branch.otherwise:
            self._tag("else")
            self._indented(branch.otherwise, dot)
        for _ in range(open_blocks):
            self._tag("endif")

    def _range(self, node: Range, dot: Value) -> None:
        over = self._pipe(node.pipe, dot)
        if node.otherwise:
            over = self._held(over)
        self._blocks += 1
        item = f"dot{self._blocks}"
        key = f"key{self._blocks}"
        if over.type.kind == "list":
            self._tag(f"for {item} in {over.code}")
            index, element = Value("loop.index0", NUMBER), Value(item, item_type(over.type))
        elif over.type.kind == "map":
            self._tag(f"for {key}, {item} in {over.code}|dictsort(true)")
            index, element = Value(key, TEXT), Value(item, item_type(over.type))
        else:
            index, element = self._range_over_anything(over, key, item)
        self._loops += 1
        self._depth += 1
        if self._loops > 1:
            self._tag(f"set go.turns = go.turns + 1 if go.turns < {MOST_TURNS} else {_NO_END}")
        self._set(node.pipe.targets, (index, element) if len(node.pipe.targets) == 2 else (element,))
        self._depth -= 1
        self._indented(node.body, element)
        self._loops -= 1
        self._tag("endfor")
        if node.otherwise:  # the `else` of a Jinja loop also runs after a `break` in the first turn
            self._tag(f"if not {over.code}")
            self._indented(node.otherwise, dot)
            self._tag("endif")

    def _range_over_anything(self, over: Value, key: str, item: str) -> tuple[Value, Value]:
        """Write a `range` over a list, map or number; text means the one-item list of a property's `type`."""
        held = self._held(over).code
        self._tag(f"set {held} = [{held}] if {held} is string else {held} or []")
        count = f"range({held} if {held} is integer else {held}|length)"
        self._tag(f"for {key} in ({held}|dictsort(true)|map('first') if {held} is mapping else {count})")
        self._tag(f"set {item} = {key} if {held} is integer else {held}[{key}]")
        return Value(key), Value(item)

    def _held(self, value: Value) -> Value:
        """Assign the value to a new name and return that."""
        self._blocks += 1
        self._tag(f"set dot{self._blocks} = {value.code}")
        return Value(f"dot{self._blocks}", value.type)

    def _set(self, slots: tuple[int, ...], values: tuple[Value, ...]) -> None:
        for slot, value in zip(slots, values, strict=False):
            self._tag(f"set go.v{slot} = {value.code}")
            self._types[slot] = ANY if slot in self._reassigned else value.type

    def _pipe(self, pipe: Pipe, dot: Value) -> Value:
        value: Value | None = None
        try:
            for command in pipe.commands:
                value = self._command(command, dot, value)
        except ValueError as error:
            raise failed(pipe.line, str(error)) from None
        assert value is not None  # noqa: S101 # a pipeline has at least one command
        return Value(self._checked(value.code, pipe.line), value.type, value.literal)

    def _command(self, command: tuple[Operand, ...], dot: Value, piped: Value | None) -> Value:
        first, *others = command
        arguments = [self._operand(operand, dot) for operand in others] + ([piped] if piped else [])
        if isinstance(first, Function):
            return FUNCTIONS[first.name](arguments)
        if arguments:
            raise ValueError("can't give argument to non-function")
        if first == Literal(None):
            raise ValueError("nil is not a command")
        return self._operand(first, dot)

    def _operand(self, operand: Operand, dot: Value) -> Value:
        match operand:
            case Dot():
                return dot
            case Root(names):
                return _ROOT.fields(names)
            case Field(names):
                return dot.fields(names)
            case Variable(slot, names):
                return Value(f"go.v{slot}", self._types.get(slot, ANY)).fields(names)
            case Chain(of, names):
                return self._pipe_value(of, dot).fields(names)
            case Function(name):
                return FUNCTIONS[name]([])
            case Literal(value):
                return _literal(value)
            case Pipe():
                return self._pipe_value(operand, dot)

    def _pipe_value(self, pipe: Pipe, dot: Value) -> Value:
        if pipe.targets:
            raise ValueError("a variable cannot be set inside parentheses")
        return self._pipe(pipe, dot)

    def _checked(self, code: str, line: int) -> str:
        depth = 0
        for char in _LITERAL.sub("", code):
            depth += (char in "([{") - (char in ")]}")
            if depth > MOST_NESTING:
                raise failed(line, "the expression is nested too deeply")
        return code

    def _indented(self, nodes: Nodes, dot: Value) -> None:
        self._depth += 1
        self.write(nodes, dot)
        self._depth -= 1

    def _tag(self, code: str) -> None:
        self._line(f"{{%- {code} -%}}")

    def _line(self, code: str) -> None:
        self.lines.append("  " * self._depth + code)


def _literal(value: str | float | bool | None) -> Value:
    if isinstance(value, str):
        return Value(quoted(value), TEXT, value)
    if value is None or isinstance(value, bool):
        return Value({None: "none", True: "true", False: "false"}[value])
    return Value(f"({value})" if value < 0 else str(value), NUMBER)
