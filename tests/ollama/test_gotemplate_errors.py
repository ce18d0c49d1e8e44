"""What a template that does not parse, or needs what is not translated, is told."""

from __future__ import annotations

import pytest

from vllama.errors import TemplateError
from vllama.ollama.gotemplate import to_jinja, variables
from vllama.ollama.status import status_of


def message(text: str) -> str:
    with pytest.raises(TemplateError) as caught:
        to_jinja(text)
    assert status_of(caught.value) == 500
    return str(caught.value)


def test_the_recorded_error_of_an_action_without_its_end() -> None:
    assert message("{{ .Prompt") == "template: :1: unclosed action"
    with pytest.raises(TemplateError, match="unclosed action"):
        variables("{{ .Prompt")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{{", ":1: unclosed action"),
        ("a\n{{ .A\n\n", ":4: unclosed action started at :2"),
        ("{{/* x", ":1: unclosed comment"),
        ("{{/* x */ }}", ":1: comment ends before closing delimiter"),
        ("{{ .A }", ':1: unexpected "}" in operand'),
        ("{{ }}", ":1: missing value for command"),
        ("{{ if }}x{{ end }}", ":1: missing value for if"),
        ("{{ () }}", ":1: missing value for parenthesized pipeline"),
        ("{{ if .A }}", ":1: unexpected EOF"),
        ("x\n{{ end }}", ":2: unexpected {{end}}"),
        ("{{ else }}", ":1: unexpected {{else}}"),
        ("{{ end", ":1: unclosed action"),
        ("{{ if .A }}{{ else }}{{ else }}{{ end }}", ":1: expected end; found {{else}}"),
        ("{{ if .A }}{{ else x }}{{ end }}", ':1: unexpected "x" in else'),
        ("{{ if .A }}{{ end x }}", ':1: unexpected "x" in end'),
        ('{{ "abc }}', ":1: unterminated quoted string"),
        ("{{ `abc }}", ":1: unterminated raw quoted string"),
        ('{{ "\\q" }}', ":1: invalid syntax"),
        ("{{ 'ab' }}", ":1: malformed character constant: 'ab'"),
        ("{{ 1x }}", ':1: bad number syntax: "1x"'),
        ("{{ 0x }}", ':1: illegal number syntax: "0x"'),
        ("{{ 99999999999999999999 }}", ':1: integer overflow: "99999999999999999999"'),
        ("{{ foo }}", ':1: function "foo" not defined'),
        ("{{ $x }}", ':1: undefined variable "$x"'),
        ("{{ if $x := 1 }}{{ end }}{{ $x }}", ':1: undefined variable "$x"'),
        ('{{ .A | "x" }}', ":1: non executable command in pipeline stage 2"),
        ("{{ (.A }}", ":1: unclosed left paren"),
        ("{{ .A) }}", ":1: unexpected right paren"),
        ("{{ .A@ }}", ":1: bad character U+0040 '@'"),
        ("{{ @ }}", ':1: unexpected "@" in command'),
        ("{{ \x00 }}", ":1: unrecognized character in action: U+0000"),
        ("{{ : }}", ":1: expected :="),
        ("{{ .A := 1 }}", ':1: unexpected ":=" in operand'),
        ("{{ break }}", ":1: {{break}} outside {{range}}"),
        ("{{ range .A }}{{ end }}{{ continue }}", ":1: {{continue}} outside {{range}}"),
        ("{{ range $i, $j, $k := .A }}{{ end }}", ":1: too many declarations in range"),
        ("{{ len 1 2 }}", ":1: wrong number of args for len: want 1 got 2"),
        ("{{ eq 1 }}", ":1: missing argument for comparison"),
        ("{{ nil }}", ":1: nil is not a command"),
        ("{{ .A .B }}", ":1: can't give argument to non-function"),
    ],
)
def test_syntax_errors_are_in_the_words_of_go(text: str, error: str) -> None:
    assert message(text) == f"template: {error}"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{{ define "x" }}{{ end }}', "{{define}}"),
        ('\n{{ template "x" . }}', "{{template}}"),
        ('{{ block "x" . }}{{ end }}', "{{block}}"),
        ("{{ html .A }}", "the function html"),
        ("{{ printf .A .B }}", "printf needs a literal as its format"),
        ('{{ printf "%U" .A }}', "printf's %U is not supported"),
        ('{{ printf "%s" }}', "printf has no argument for %s"),
        ('{{ printf "%s" 1 2 }}', "printf has more arguments than verbs"),
        ("{{ if true }}" * 40 + "{{ end }}" * 40, "nested blocks"),
        ("{{ range 1 }}" * 20 + "{{ end }}" * 20, "nested {{range}}"),
        ("{{ " + "(" * 20 + "1" + ")" * 20 + " }}", "nested parentheses"),
        ("{{ 1" + " | not" * 40 + " }}", "a pipeline of more than"),
        ("{{ .A" + ".B" * 40 + " }}", "a chain of more than"),
        ("{{ and" + " 1" * 400 + " }}", "a command with more than"),
        ("{{ if 1 }}" + "{{ else if 1 }}" * 400 + "{{ end }}", "in a row"),
        ("{{ 1 }}" * 4000, "a template of more than"),
    ],
)
def test_what_is_not_translated_is_named_with_its_line(text: str, what: str) -> None:
    error = message(text)
    assert error.startswith(f"template: :{2 if text.startswith(chr(10)) else 1}: ")
    assert what in error
