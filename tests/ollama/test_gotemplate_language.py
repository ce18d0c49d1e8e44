"""The language of Go's templates, one rule at a time. The expected texts are what Ollama's own templates give."""

# ruff: noqa: E501 # templates are read best in whole lines

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from go_templates import WEATHER, assistant, call, render, system, tool, user, value
from jinja2 import TemplateError as RenderError

from vllama.ollama.gotemplate import is_go_template, to_jinja, variables

SEEN = "{{ with .Messages }}{{ end }}"


def printed(template: str, **variables: Any) -> str:
    """What a template prints that looks at no message."""
    return render(template + SEEN, user("x"), **variables)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a {{- 1 -}} b", "a1b"),
        ("a {{ 1 -}}\n\t {{- 2 }} b", "a 12 b"),
        ("a {{1}} b", "a 1 b"),
        ("a {{-1}} b", "a -1 b"),
        ("a {{/* {{ .X }} */}} b", "a  b"),
        ("a {{- /* over\ntwo lines */ -}} b", "ab"),
        ("\n{{ 1 }}\n", "\n1\n"),
        ("a\r\n{{- 1 }}", "a1"),
    ],
)
def test_trim_markers_and_comments(template: str, text: str) -> None:
    assert printed(template) == text


@pytest.mark.parametrize(
    ("pipeline", "text"),
    [
        ('"a\\tb\\u00e9\\x41\\101\\""', 'a\tbéAA"'),
        ('`a\\n"b`', 'a\\n"b'),
        ("'a'", "97"),
        ("0x1F", "31"),
        ("1_000", "1000"),
        ("0b101", "5"),
        ("017", "15"),
        ("-3", "-3"),
        ("1.5", "1.5"),
        ("2.0", "2"),
        ("true", "true"),
        ("print nil", ""),
    ],
)
def test_literals(pipeline: str, text: str) -> None:
    assert value(pipeline, user("x")) == text


@pytest.mark.parametrize(
    ("pipeline", "text"),
    [
        ("eq 1 1", "true"),
        ('eq "c" "a" "b" "c"', "true"),
        ("ne 1 2", "true"),
        ("lt 1 2", "true"),
        ("le 2 2", "true"),
        ("gt 1 2", "false"),
        ("ge 2 3", "false"),
        ('and 1 "" 2', ""),
        ('or 0 "" "x"', "x"),
        ('and "a" "b"', "b"),
        ('not ""', "true"),
        ('len "é"', "2"),
        ("len .Messages", "1"),
        ('index "abc" 1', "98"),
        ('slice "abcdef" 1 3', "bc"),
        ('print 1 2 "a" "b" 3', "1 2ab3"),
        ('println "a" 1', "a 1\n"),
        (
            'printf "%s|%d|%v|%q|%t|%5d|%-4s|%.2f|%x|%%" "a" 1 true "q\\"" true 42 "ab" 1.5 255',
            'a|1|true|"q\\""|true|   42|ab  |1.50|ff|%',
        ),
        ('printf "%*d|" 4 7', "   7|"),
        ('"x" | printf "%s-%s" "y"', "y-x"),
        ("true | not", "false"),
        ('json "<a & b>"', '"\\u003ca \\u0026 b\\u003e"'),
        ("(index .Messages 0).Content", "x"),
        ("(slice .Messages 0 1) | len", "1"),
    ],
)
def test_functions(pipeline: str, text: str) -> None:
    assert value(pipeline, user("x")) == text


def test_a_variable_set_in_a_loop_keeps_its_value_after_it() -> None:
    template = '{{ $last := "" }}{{ range .Messages }}{{ $last = .Content }}{{ end }}{{ $last }}'
    assert render(template, user("a"), assistant("b")) == "b"


def test_a_variable_declared_again_in_a_block_leaves_the_outer_one_alone() -> None:
    assert printed("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}") == "21"


def test_a_variable_declared_by_if_is_seen_in_its_else() -> None:
    assert printed('{{ if $x := "" }}{{ else if $y := "b" }}{{ $x }}{{ $y }}{{ end }}') == "b"


def test_range_gives_index_and_element_or_the_element_alone() -> None:
    two = [user("a"), assistant("b")]
    assert render("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ .Role }} {{ end }}", *two) == (
        "0auser 1bassistant "
    )
    assert render("{{ range $m := .Messages }}{{ $m.Content }}{{ end }}", *two) == "ab"
    assert (
        render(
            "{{ range $i, $_ := .Messages }}{{ range $j, $_ := $.Messages }}{{ $i }}{{ $j }} {{ end }}{{ end }}", *two
        )
        == "00 01 10 11 "
    )


def test_range_over_a_map_is_sorted_by_key() -> None:
    template = "{{ range .Tools }}{{ range $name, $p := .Function.Parameters.Properties }}{{ $name }}:{{ $p.Type }} {{ end }}{{ end }}"
    assert printed(template, tools=[WEATHER]) == "city:string unit:string "


def test_range_over_a_number_counts() -> None:
    assert printed("{{ range 3 }}{{ . }}{{ end }}") == "012"


def test_range_else_runs_for_nothing_only_and_not_after_a_break() -> None:
    assert printed("{{ range .Tools }}x{{ else }}none{{ end }}") == "none"
    assert printed("{{ range .Messages }}{{ break }}{{ else }}none{{ end }}") == ""


def test_break_and_continue() -> None:
    template = '{{ range .Messages }}{{ if eq .Role "system" }}{{ continue }}{{ end }}{{ if eq .Content "stop" }}{{ break }}{{ end }}{{ .Content }}{{ end }}'
    assert render(template, system("s"), user("a"), assistant("stop"), user("b")) == "a"


def test_with_sets_the_dot_and_its_else_does_not() -> None:
    assert printed('{{ with "a" }}{{ . }}{{ end }}{{ with "" }}x{{ else with "b" }}{{ . }}{{ else }}y{{ end }}') == "ab"
    assert (
        render("{{ range .Messages }}{{ with .Thinking }}x{{ else }}{{ .Content }}{{ end }}{{ end }}", user("a")) == "a"
    )


def test_the_dollar_sign_is_the_whole_data_everywhere() -> None:
    assert render("{{ range .Messages }}{{ $.System }}{{ end }}", system("s")) == "s"


def test_nil_in_a_chain_prints_nothing() -> None:
    assert printed("[{{ .Nothing.At.All }}{{ index .Tools 5 }}]") == "[]"


def test_null_content_is_empty_text() -> None:
    assert (
        render("{{ range .Messages }}[{{ .Content }}]{{ if not .Content }}empty{{ end }}{{ end }}", assistant(None))
        == "[]empty"
    )


def test_a_field_that_messages_do_not_have_fails_when_it_is_reached() -> None:
    template = "{{ range .Messages }}{{ .Contents }}{{ end }}"
    assert render(template) == ""
    with pytest.raises(RenderError, match="can't evaluate field Contents in a message"):
        render(template, user("a"))


def test_objects_print_as_json_and_other_lists_in_brackets() -> None:
    shown = "{{ range .Tools }}{{ .Function.Parameters.Required }} {{ .Function.Parameters.Properties }}{{ end }}"
    assert printed(shown, tools=[WEATHER]) == (
        '[city] {"unit":{"type":"string","description":"c or f"},"city":{"type":"string","description":"the city"}}'
    )


def test_arguments_that_came_as_json_text_print_as_they_are() -> None:
    template = "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Arguments }}{{ json .Function.Arguments }}{{ end }}{{ end }}"
    assert render(template, assistant("", tool_calls=[call("f", '{"a": 1}')])) == '{"a": 1}{"a": 1}'


def test_a_key_named_like_a_method_is_a_key() -> None:
    template = "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Arguments.items }}|{{ .Function.Arguments.keys }}{{ end }}{{ end }}"
    assert render(template, assistant("", tool_calls=[call("f", {"items": "a"})])) == "a|"


def test_the_types_of_parameters_in_typescript() -> None:
    properties = {
        "a": {"type": "integer"},
        "b": {"type": ["string", "null"]},
        "c": {"anyOf": [{"type": "array"}, {"type": "object"}]},
        "d": {},
        "e": {"type": "strange"},
    }
    typed = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    template = "{{ range .Tools }}{{ range $n, $p := .Function.Parameters.Properties }}{{ $n }}: {{ toTypeScriptType $p }}; {{ end }}{{ end }}"
    assert printed(template, tools=[typed]) == (
        "a: number; b: string | null; c: any[] | Record<string, any>; d: any; e: any; "
    )


def test_today_and_yesterday() -> None:
    today = dt.datetime.now()  # noqa: DTZ005 # the machine's own day, as in Ollama
    yesterday = today - dt.timedelta(days=1)
    assert printed('{{ currentDate }} {{ yesterdayDate "2006" }}') == f"{today:%Y-%m-%d} {yesterday:%Y-%m-%d}"


@pytest.mark.parametrize(
    ("today", "yesterday"),
    [
        ("2024-03-01", "2024-02-29"),
        ("2023-03-01", "2023-02-28"),
        ("1900-03-01", "1900-02-28"),
        ("2026-01-01", "2025-12-31"),
        ("2026-05-01", "2026-04-30"),
        ("2026-08-01", "2026-07-31"),
        ("2026-10-10", "2026-10-09"),
    ],
)
def test_the_day_before_the_first_of_a_month(today: str, yesterday: str) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment()
    environment.globals["strftime_now"] = dt.date.fromisoformat(today).strftime
    assert environment.from_string(to_jinja("{{ yesterdayDate }}")).render(messages=[]) == yesterday


def test_messages_of_one_role_in_a_row_are_one_but_for_tools() -> None:
    template = "{{ range .Messages }}[{{ .Role }} {{ .Content }}]{{ end }}"
    conversation = [user("a"), user("b"), tool("1"), tool("2"), assistant("c"), assistant("d")]
    assert render(template, *conversation) == "[user a\n\nb][tool 1][tool 2][assistant c\n\nd]"


def test_joined_messages_keep_the_calls_of_both() -> None:
    template = "{{ range .Messages }}{{ .Content }}{{ range .ToolCalls }}<{{ .Function.Name }}>{{ end }}{{ end }}"
    calls = [assistant("a", tool_calls=[call("f", {})]), assistant("", tool_calls=[call("g", {})])]
    assert render(template, *calls) == "a\n\n<f><g>"


def test_system_is_all_system_messages() -> None:
    assert render("{{ .System }}{{ range .Messages }}{{ end }}", system("a"), user("x"), system("b")) == "a\n\nb"


def test_without_messages_the_template_runs_once_for_each_round() -> None:
    template = "<{{ .System }}|{{ .Prompt }}|{{ .Response }}>"
    conversation = [system("s"), user("a"), user("b"), assistant("c"), system("t"), user("d")]
    assert render(template, *conversation) == "<s|a\n\nb|c><t|d|"


def test_a_template_that_names_no_response_gets_it_at_its_end() -> None:
    assert render("[{{ .Prompt }}]", user("a"), assistant("b"), user("c")) == "[a]b[c]"


def test_what_follows_the_response_in_a_block_is_cut_from_the_last_round() -> None:
    template = "{{ if .Prompt }}{{ .Prompt }}:{{ .Response }}!{{ else }}nothing{{ end }}."
    assert render(template, user("a"), assistant("b"), user("c")) == "a:b!.c:"


def test_thinking_is_read_off_the_variables_that_vllm_passes() -> None:
    template = "{{ .Think }} {{ .ThinkLevel }} {{ .IsThinkSet }}"
    assert printed(template) == "false  false"
    assert printed(template, enable_thinking=True) == "true medium true"
    assert printed(template, enable_thinking=False) == "false  true"
    assert printed(template, reasoning_effort="high") == "true high true"
    assert printed(template, enable_thinking=None, reasoning_effort=None) == "false  false"


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_thoughts_are_found_under_each_of_their_names(key: str) -> None:
    assert render("{{ range .Messages }}{{ .Thinking }}{{ end }}", assistant("a", **{key: "b"})) == "b"


def test_only_templates_that_ask_for_a_variable_read_it() -> None:
    assert "enable_thinking" not in to_jinja("{{ .Prompt }}")
    assert "suffix" not in to_jinja("{{ .Prompt }}")
    assert "tools" not in to_jinja("{{ .Prompt }}")


def test_text_is_never_syntax_to_jinja() -> None:
    text = '{% if %} {# a #} }} %} #} {%- raw -%} \' " \\ \\n {{"{{"}} \u2028 é 🦙 \x00\x85\n'
    assert render(text, user("x")) == text.replace('{{"{{"}}', "{{")


def test_what_clients_send_is_never_syntax_to_jinja() -> None:
    assert render("{{ .Prompt }}", user("{{ 7 * 7 }}{% raw %}")) == "{{ 7 * 7 }}{% raw %}"


def test_loops_in_loops_come_to_an_end() -> None:
    with pytest.raises(RenderError, match="find no end"):
        printed("{{ range 1000 }}{{ range 1000 }}{{ end }}{{ end }}")


def test_a_text_that_doubles_comes_to_an_end() -> None:
    with pytest.raises(RenderError, match="more than 16 Mi characters"):
        printed('{{ $x := "aa" }}{{ range 99 }}{{ $x = printf "%s%s" $x $x }}{{ end }}')


@pytest.mark.parametrize(
    "text",
    [
        "{{ .Prompt }}",
        "{{- range .Messages }}",
        "{{ .Prompt",
        "{{if .System}}",
        "{{/* note */}}",
        "{{- end -}}",
        "{{ $x := 1 }}",
        "{{ json .Messages }}{% not jinja %}",
        "{{ currentDate }}",
        "{{ else if eq .Role `user` }}",
        "plain text",
        "",
    ],
)
def test_go_templates_are_told(text: str) -> None:
    assert is_go_template(text)


@pytest.mark.parametrize(
    "text",
    [
        "{% for message in messages %}{{ message.content }}{% endfor %}",
        "{{ bos_token }}",
        "{{- messages[0]['content'] -}}",
        "{# note #}text",
        "{{ range(3)|list }}",
        "{{ 'x' if tools else '' }}",
        "{{ end_token }}",
        "{{ .5 }}",
        "{%- if tools %}<tools>{% endif %}",
    ],
)
def test_jinja_templates_are_told(text: str) -> None:
    assert not is_go_template(text)


def test_variables_are_all_fields_of_the_template() -> None:
    template = (
        "{{ if $.Tools }}{{ range .Messages }}{{ .Role }}{{ (index .ToolCalls 0).Function.Name }}{{ end }}{{ end }}"
    )
    assert variables(template) == {"Tools", "Messages", "Role", "ToolCalls", "Function", "Name"}
    assert variables("no action") == frozenset()
