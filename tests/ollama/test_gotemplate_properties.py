"""Any text at all, taken for a Go template."""

# ruff: noqa: E501 # templates are read best in whole lines

from __future__ import annotations

import contextlib

from go_templates import assistant, call, render, system, user
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError as RenderError
from transformers.utils.chat_template_utils import render_jinja_template

from vllama.errors import TemplateError
from vllama.ollama.gotemplate import is_go_template, to_jinja, variables

PIECES = [
    "{{", "}}", "{{- ", " -}}", "if ", "else ", "end", "range ", "with ", "break", "continue", "define ", ".Messages",
    ".Role", ".Content", ".ToolCalls", ".Function.Arguments", ".Response", ".Prompt", ".Suffix", ".Tools", ".", "$", "$x",
    " := ", " = ", ", ", " | ", "(", ")", '"', "`", "'", "printf ", '"%s%d" ', "len ", "index ", "slice ", "eq ", "and ",
    "json ", "0", "1", "-1", "1e9", "0x", "nil", "true", " ", "\n", "{%", "%}", "{#", "/*", "*/", "\\", "é", "\x00",
]  # fmt: skip
NEARLY_TEMPLATES = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
ACTIONS = st.sampled_from(
    [
        "{{ .Prompt }}", "{{ .Response }}", "{{ if .System }}", "{{ else }}", "{{ else if .Tools }}", "{{ end }}",
        "{{ range .Messages }}", "{{ range $i, $m := $.Messages }}", "{{ .Role }}", "{{ .Content }}", "{{ $.System }}",
        "{{ with .ToolCalls }}", "{{ range .ToolCalls }}", "{{ .Function.Arguments }}", "{{ break }}", "{{- . -}}",
        '{{ $x := "a" }}', "{{ $x = .Content }}", "{{ $x }}", '{{ printf "%v" . }}', "{{ json . }}", "{{ len .Messages }}",
        "{{ index .Messages 0 }}", "{{ slice $.Messages 1 }}", "{{ toTypeScriptType . }}", " text ", "\n",
    ]
)  # fmt: skip
untimed = settings(deadline=None)  # the first example imports and compiles
CONVERSATION = [system("s"), user("a"), assistant("b", tool_calls=[call("f", {"x": [1, {"y": None}]})]), user("c")]


@untimed
@given(st.one_of(st.text(), NEARLY_TEMPLATES, st.lists(ACTIONS, max_size=25).map("".join)))
def test_no_text_raises_anything_but_a_template_error(text: str) -> None:
    is_go_template(text)
    with contextlib.suppress(TemplateError):
        variables(text)
        to_jinja(text)


@untimed
@given(st.one_of(NEARLY_TEMPLATES, st.lists(ACTIONS, max_size=25).map("".join)))
def test_what_is_translated_is_jinja_and_fails_only_as_templates_fail(text: str) -> None:
    try:
        template = to_jinja(text)
    except TemplateError:
        return
    with contextlib.suppress(RenderError, TypeError):  # a field of a number, a comparison of text with a number
        render_jinja_template([CONVERSATION], chat_template=template, prompt="p", suffix="s")


@untimed
@given(st.one_of(st.text(), NEARLY_TEMPLATES).filter(lambda text: "{{" not in text))
def test_text_without_actions_renders_as_itself(text: str) -> None:
    assert render(text, user("hello")) == text


@untimed
@given(st.text(st.characters(codec="utf-8")))
def test_what_a_client_says_renders_as_itself(text: str) -> None:
    assert render("<{{ .Prompt }}>", user(text)) == f"<{text}>"
