"""Parser from tokens to the syntax tree (the grammar of Go's text/template)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vllama.durations import quote
from vllama.errors import TemplateError
from vllama.ollama.gotemplate.functions import FUNCTIONS, UNTRANSLATED
from vllama.ollama.gotemplate.lexer import Kind, Lexer, Token, failed
from vllama.ollama.gotemplate.literals import number, unquote
from vllama.ollama.gotemplate.nodes import (
    Action,
    Branch,
    Chain,
    Dot,
    Field,
    Function,
    Jump,
    Literal,
    Names,
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

MOST_BLOCKS = 32
"""Maximum depth of nested `if`, `with` and `range`."""
MOST_LOOPS = 12
"""Maximum depth of nested `range`; Python, which runs Jinja, allows 20 loops."""
MOST_PARENS = 12
"""Maximum depth of nested parentheses."""
MOST_IN_A_ROW = 100
"""Maximum number of `else if` of one `if`, or of operands of one command."""
MOST_STAGES = 16
"""Maximum number of commands in a pipeline, or of fields in a chain."""
MOST_NODES = 2_000
"""Maximum number of texts and actions in a template; Jinja takes about a millisecond for each."""

_LITERALS = {Kind.BOOL, Kind.CHARACTER, Kind.NIL, Kind.NUMBER, Kind.RAW_STRING, Kind.STRING}
_OPERANDS = _LITERALS | {Kind.DOT, Kind.FIELD, Kind.IDENTIFIER, Kind.LEFT_PAREN, Kind.VARIABLE}
_PLAIN_VALUES = (Literal, Dot)


def parse(text: str) -> Template:
    """Parse a template and return its syntax tree. Raises TemplateError."""
    return Parser(text).template()


class Parser:
    """Parser for one template, with lookahead."""

    def __init__(self, text: str) -> None:
        self._tokens = Lexer(text).tokens()
        self._ahead: list[Token] = []
        self._line = 1
        self._scope: list[tuple[str, int]] = []  # visible variables, innermost last
        self._slots = 0
        self._names: set[str] = set()
        self._reassigned: set[int] = set()
        self._nodes = self._blocks = self._loops = self._parens = 0

    def template(self) -> Template:
        """Parse the whole template."""
        nodes, end = self._list()
        if end != "EOF":
            self._expect_right(end)
            raise self._failed(f"unexpected {{{{{end}}}}}")
        return Template(nodes, frozenset(self._names), frozenset(self._reassigned))

    def _list(self) -> tuple[Nodes, str]:
        """Parse nodes up to `end`, `else` (whose rest the caller parses) or the end of the text."""
        nodes: list[Node] = []
        while True:
            token = self._next()
            self._nodes += 1
            if self._nodes > MOST_NODES:
                raise self._outside(f"a template of more than {MOST_NODES} pieces")
            if token.kind is Kind.EOF:
                return tuple(nodes), "EOF"
            if token.kind is Kind.TEXT:
                nodes.append(Text(token.text))
                continue
            keyword = self._peek_past_space()
            if keyword.kind is not Kind.KEYWORD:
                nodes.append(Action(self._pipeline("command")))
                continue
            self._next_past_space()
            if keyword.text in {"end", "else"}:
                return tuple(nodes), keyword.text
            nodes.append(self._block(keyword))

    def _block(self, keyword: Token) -> Node:
        match keyword.text:
            case "break" | "continue":
                return self._jump(keyword.text)
            case "if" | "with":
                return self._branch(keyword.text)
            case "range":
                return self._range()
        raise self._outside(f"{{{{{keyword.text}}}}}")

    def _jump(self, keyword: str) -> Jump:
        token = self._next_past_space()
        if token.kind is not Kind.RIGHT:
            raise self._unexpected(token, f"{{{{{keyword}}}}}")
        if not self._loops:
            raise self._failed(f"{{{{{keyword}}}}} outside {{{{range}}}}")
        return Jump(keyword)

    def _branch(self, keyword: str) -> Branch:
        arms: list[tuple[Pipe, Nodes]] = []
        with self._nested():
            while True:
                pipe = self._pipeline(keyword)
                body, end = self._list()
                arms.append((pipe, body))
                if len(arms) > MOST_IN_A_ROW:
                    raise self._outside(f"more than {MOST_IN_A_ROW} `else {keyword}` in a row")
                if len(arms) > 1 and (keyword == "with" or pipe.targets):
                    self._count_block()  # Jinja has no `elif` for this
                if end == "else" and self._peek_past_space().text == keyword:
                    self._next_past_space()
                    continue
                return Branch(keyword, tuple(arms), self._otherwise(end))

    def _range(self) -> Range:
        with self._nested():
            pipe = self._pipeline("range")
            self._loops += 1
            if self._loops > MOST_LOOPS:
                raise self._outside(f"more than {MOST_LOOPS} nested {{{{range}}}}")
            body, end = self._list()
            self._loops -= 1
            return Range(pipe, body, self._otherwise(end))

    def _otherwise(self, end: str) -> Nodes:
        """Parse the nodes between a block's `else` and its required `end`."""
        nodes: Nodes = ()
        if end == "else":
            self._expect_right("else")
            nodes, end = self._list()
            if end == "else":
                raise self._failed("expected end; found {{else}}")
        if end == "EOF":
            raise self._failed("unexpected EOF")
        self._expect_right("end")
        return nodes

    @contextmanager
    def _nested(self) -> Iterator[None]:
        """Enter a block; its declarations end with it."""
        visible, blocks = len(self._scope), self._blocks
        self._count_block()
        yield
        self._blocks = blocks
        del self._scope[visible:]

    def _count_block(self) -> None:
        self._blocks += 1
        if self._blocks > MOST_BLOCKS:
            raise self._outside(f"more than {MOST_BLOCKS} nested blocks")

    def _expect_right(self, context: str) -> None:
        token = self._next_past_space()
        if token.kind is not Kind.RIGHT:
            raise self._unexpected(token, context)

    def _pipeline(self, context: str, end: Kind = Kind.RIGHT) -> Pipe:
        """Parse declarations and commands up to and including the closing braces or parenthesis."""
        line = self._peek_past_space().line
        targets = self._targets(context)
        commands: list[tuple[Operand, ...]] = []
        while True:
            token = self._peek_past_space()
            if token.kind is end:
                self._next_past_space()
                break
            if token.kind not in _OPERANDS:
                raise self._unexpected(self._next_past_space(), context)
            commands.append(self._command())
            if len(commands) > MOST_STAGES:
                raise self._outside(f"a pipeline of more than {MOST_STAGES} commands")
        if not commands:
            raise self._failed(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], start=2):
            if isinstance(command[0], _PLAIN_VALUES):
                raise self._failed(f"non executable command in pipeline stage {stage}")
        return Pipe(line, tuple(commands), targets)

    def _targets(self, context: str) -> tuple[int, ...]:
        """Parse `$x :=`, `$x =` or, in `range`, `$i, $x :=`; return nothing if the pipeline begins with a value."""
        names: list[str] = []
        read: list[Token] = []
        while self._peek_past_space(read).kind is Kind.VARIABLE:
            names.append(self._next_past_space(read).text)
            following = self._peek_past_space(read)
            if following.kind in {Kind.ASSIGN, Kind.DECLARE}:
                self._next_past_space()
                return tuple(self._target(name, assigns=following.kind is Kind.ASSIGN) for name in names)
            if following.text != ",":
                break
            self._next_past_space(read)
            if context != "range" or len(names) == 2:
                raise self._failed(f"too many declarations in {context}")
            if self._peek_past_space(read).kind is not Kind.VARIABLE:
                raise self._failed("range can only initialize variables")
        self._ahead[:0] = read
        return ()

    def _target(self, name: str, *, assigns: bool) -> int:
        if assigns:
            slot = self._slot(name)
            self._reassigned.add(slot)
            return slot
        self._slots += 1
        self._scope.append((name, self._slots))
        return self._slots

    def _slot(self, name: str) -> int:
        for visible, slot in reversed(self._scope):
            if visible == name:
                return slot
        raise self._failed(f"undefined variable {quote(name)}")

    def _command(self) -> tuple[Operand, ...]:
        """Parse operands separated by spaces, up to and including a pipe, or up to the end of the pipeline."""
        operands: list[Operand] = []
        while True:
            self._peek_past_space()
            operand = self._operand()
            if operand is not None:
                operands.append(operand)
            if len(operands) > MOST_IN_A_ROW:
                raise self._outside(f"a command with more than {MOST_IN_A_ROW} operands")
            token = self._next()
            if token.kind is Kind.SPACE:
                continue
            if token.kind in {Kind.RIGHT, Kind.RIGHT_PAREN}:
                self._ahead.insert(0, token)
            elif token.kind is not Kind.PIPE:
                raise self._unexpected(token, "operand")
            if not operands:
                raise self._failed("empty command")
            return tuple(operands)

    def _operand(self) -> Operand | None:
        """Parse a term and the fields directly after it."""
        token = self._peek_past_space()
        if token.kind not in _OPERANDS:
            return None
        self._next_past_space()
        term = self._term(token)
        names = self._fields()
        if not names:
            return term
        match term:
            case Field(before):
                return Field(before + names)
            case Root(before):
                return Root(before + names)
            case Variable(slot, before):
                return Variable(slot, before + names)
            case Pipe():
                return Chain(term, names)
            case Function(name):
                raise self._outside(f"a field of the function {name}")
        raise self._failed(f"unexpected . after term {quote(token.text)}")

    def _fields(self) -> Names:
        names: list[str] = []
        while self._peek().kind is Kind.FIELD:
            names.append(self._next().text[1:])
            if len(names) > MOST_STAGES:
                raise self._outside(f"a chain of more than {MOST_STAGES} fields")
        self._names.update(names)
        return tuple(names)

    def _term(self, token: Token) -> Operand:
        match token.kind:
            case Kind.IDENTIFIER:
                return self._function(token.text)
            case Kind.DOT:
                return Dot()
            case Kind.FIELD:
                self._names.add(token.text[1:])
                return Field((token.text[1:],))
            case Kind.VARIABLE:
                return Root(()) if token.text == "$" else Variable(self._slot(token.text))
            case Kind.LEFT_PAREN:
                return self._parenthesis()
            case Kind.BOOL:
                return Literal(token.text == "true")
            case Kind.NIL:
                return Literal(None)
        return Literal(self._value(token))

    def _function(self, name: str) -> Function:
        if name in UNTRANSLATED:
            raise self._outside(f"the function {name}")
        if name not in FUNCTIONS:
            raise self._failed(f"function {quote(name)} not defined")
        return Function(name)

    def _parenthesis(self) -> Pipe:
        self._parens += 1
        if self._parens > MOST_PARENS:
            raise self._outside(f"more than {MOST_PARENS} nested parentheses")
        pipe = self._pipeline("parenthesized pipeline", Kind.RIGHT_PAREN)
        self._parens -= 1
        return pipe

    def _value(self, token: Token) -> str | int | float:
        try:
            if token.kind is Kind.NUMBER:
                return number(token.text)
            value = unquote(token.text)
        except ValueError as error:
            shown = "" if token.kind is Kind.STRING else f": {quote(token.text)}"
            raise self._failed(f"{error}{shown}") from None
        if token.kind is not Kind.CHARACTER:
            return value
        if len(value) != 1:
            raise self._failed(f"malformed character constant: {token.text}")
        return ord(value)

    def _peek(self) -> Token:
        if not self._ahead:
            self._ahead.append(next(self._tokens))
        return self._ahead[0]

    def _next(self) -> Token:
        token = self._peek()
        self._line = token.line
        return self._ahead.pop(0)

    def _peek_past_space(self, read: list[Token] | None = None) -> Token:
        """Return the next token that is not a space; spaces are dropped, or kept in `read`."""
        while self._peek().kind is Kind.SPACE:
            space = self._next()
            if read is not None:
                read.append(space)
        return self._peek()

    def _next_past_space(self, read: list[Token] | None = None) -> Token:
        self._peek_past_space(read)
        token = self._next()
        if read is not None:
            read.append(token)
        return token

    def _unexpected(self, token: Token, context: str) -> TemplateError:
        return self._failed(f"unexpected {token} in {context}")

    def _outside(self, what: str) -> TemplateError:
        return self._failed(f"{what} is not supported")

    def _failed(self, message: str) -> TemplateError:
        return failed(self._line, message)
