"""Templates that compute, repeat or nest without end, in Jinja and in Go: each is ended, and real ones are not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.ext import loopcontrols

from vllama.errors import RequestError
from vllama.ollama.bounded_jinja import BoundedEnvironment, budgets
from vllama.ollama.gotemplate import to_jinja
from vllama.ollama.template_budget import TemplateTooCostly
from vllama.ollama.template_limits import limits, set_limits
from vllama.ollama.templates import check_template


@pytest.fixture(autouse=True)
def small_limits() -> Iterator[None]:
    usual = limits()
    set_limits(replace(usual, seconds=0.3, characters=1 << 20))
    yield
    set_limits(usual)


def environment() -> BoundedEnvironment:
    """Build the environment as transformers does."""

    def tojson(x: Any, ensure_ascii: bool = False, indent: Any = None) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent)

    made = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = tojson
    return made


def rendered(template: str, **given: Any) -> str:
    return environment().from_string(template).render(**given)


DOUBLED = "{% set x = 'ab' * 99 %}" + "{% set x = x ~ x %}" * 40 + "{{ x|length }}"
NESTED = "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60

COSTLY = {
    "a power": "{{ (3**(10**9)) > 1 }}",
    "a power of a variable": "{% set x = 10**9 %}{{ 3**x }}",
    "a power of powers": "{{ 9**(9**9) }}",
    "a number that grows": "{% set ns = namespace(x=3) %}{% for i in range(99999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",  # noqa: E501
    "an endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "an endless loop over filters": "{% for a in range(99999) %}{{ range(99999)|map('string')|list|length }}{% endfor %}",  # noqa: E501
    "an endless selection": "{% for a in range(9999) %}{% if range(99999)|select('odd')|list %}{% endif %}{% endfor %}",
    "endless macros": "{% macro a(n) %}{% if n %}{{ a(n-1) }}{{ a(n-1) }}{% endif %}{% endmacro %}{{ a(99) }}",
    "endless recursion of a loop": "{% for x in [1] recursive %}{{ loop([1, 1]) if loop.depth < 60 }}{% endfor %}",
    "endless blocks": "{% block a %}{{ self.b() }}{{ self.b() }}{% endblock %}{% block b %}{{ self.a() }}{% endblock %}",  # noqa: E501
    "a repeated text": "{{ 'x' * 10**10 }}",
    "a repeated list": "{{ ([0] * 10**10)|length }}",
    "a list times a number": "{{ (10**10 * [0])|length }}",
    "doubled text": DOUBLED,
    "doubled text by plus": DOUBLED.replace("~", "+"),
    "a text set in a loop": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",  # noqa: E501
    "a nested list that is printed": NESTED + "{{ x }}",
    "a nested list as JSON": NESTED + "{{ x|tojson }}",
    "a nested list as a text": NESTED + "{{ x|string|length }}",
    "a nested list, joined": NESTED + "{{ 'a' ~ x }}",
    "nested lists, compared": NESTED + NESTED.replace("x", "y") + "{{ x == y }}",
    "nested lists, searched": NESTED + NESTED.replace("x", "y") + "{{ x in [y] }}",
    "nested lists, found by index": NESTED + NESTED.replace("x", "y") + "{{ [x].index(y) }}",
    "nested lists, formatted": NESTED + "{{ '%s' % (x,) }}",
    "nested lists, formatted by a method": NESTED + "{{ '{}'.format(x) }}",
    "nested dictionaries": NESTED.replace("[x, x]", "{'a': x, 'b': x}") + "{{ x }}",
    "nested dictionaries made by dict": NESTED.replace("[x, x]", "dict(a=x, b=x)") + "{{ x }}",
    "nested arguments": "{% macro m(n) %}{% if n %}{{ m(n-1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}{% endmacro %}{{ m(40) }}",  # noqa: E501
    "nested namespaces": "{% set x = namespace(a=1) %}" + "{% set x = namespace(a=x, b=x) %}" * 40 + "{{ x }}",
    "a wide text": "{{ 'x'|center(10**10) }}",
    "a wide text by a constant": "{{ 'x'|center(10000000000) }}",
    "a wide text by a method": "{{ 'x'.ljust(10**10) }}",
    "a wide indentation": "{{ ('\\n' * 9999)|indent(9999) }}",
    "a text as indentation": "{{ ('\\n' * 9999)|indent('x' * 99999) }}",
    "wide JSON": "{{ [[[1]]]|tojson(indent=10**9) }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format from an argument": "{{ '%*d' % (10**9, 1) }}",
    "a wide format by a filter": "{{ '%1000000000d'|format(1) }}",
    "a wide format by a method": "{{ '{:1000000000}'.format(1) }}",
    "a wide format from braces": "{{ '{:{}}'.format(1, 10**9) }}",
    "replacement by long text": "{{ ('x' * 9999).replace('x', 'y' * 9999)|length }}",
    "replacement of nothing": "{{ ('x' * 9999)|replace('', 'y' * 9999)|length }}",
    "joined by long text": "{{ (['x'] * 9999)|join('y' * 9999)|length }}",
    "joined by a method": "{{ ('y' * 9999).join(['x'] * 9999)|length }}",
    "the same long text in a list": "{{ ([('y' * 9999)] * 9999)|join|length }}",
    "mapped to long texts": "{{ range(9999)|map('replace', '', 'y' * 9999)|join|length }}",
    "tabs": "{{ ('\\t' * 9999).expandtabs(9999)|length }}",
    "translated to long texts": "{{ ('x' * 9999).translate({120: 'y' * 9999})|length }}",
    "rounded up": "{{ 1.5|round(10**9, 'ceil') }}",
    "many bytes": "{{ (5).to_bytes(10**10, 'big')|length }}",
    "rows": "{{ [1]|batch(10**9, 0)|list|length }}",
    "columns": "{{ [1]|slice(10**9)|list|length }}",
    "filler": "{{ 'x' * 99 }}" * 10 + "{% for i in range(99999) %}" + "filler " * 500 + "{% endfor %}",
    "mapped widths": "{{ ['a']|map('center', 10**9)|list|length }}",
}


@pytest.mark.parametrize("template", COSTLY.values(), ids=COSTLY.keys())
def test_a_costly_template_is_ended(template: str) -> None:
    with pytest.raises((TemplateTooCostly, RecursionError, OverflowError)):
        rendered(template)


@pytest.mark.parametrize("template", COSTLY.values(), ids=COSTLY.keys())
def test_a_costly_template_is_compiled_without_computing(template: str) -> None:
    check_template(template)
    environment().from_string(template)


@pytest.mark.parametrize(
    "go",
    [
        "{{ .Prompt }}" * 200,
        "{{ range .Messages }}{{ range $.Messages }}{{ range $.Messages }}{{ .Content }}{{ end }}{{ end }}{{ end }}",
        "{{ range .Messages }}" * 6 + "{{ .Content }}" + "{{ end }}" * 6,
    ],
)
def test_a_go_template_that_repeats_its_prompt_is_ended(go: str) -> None:
    messages = [{"role": role, "content": "x" * 9_999} for role in ("user", "assistant", "user") * 9]
    with pytest.raises(TemplateError):
        rendered(to_jinja(go), messages=messages)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 3 ** 4 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 1.5 * 2 }}", "81 3 3 3.0"),
        ("{{ '=' * 5 }}{{ 'a' ~ 1 ~ none }}{{ [1] + [2] }}", "=====a1None[1, 2]"),
        ("{{ '%05.1f' % 1.5 }} {{ '%s' % 'x' }} {{ '{:>3}'.format(7) }}", "001.5 x   7"),
        ("{% for x in [1, 2] %}{{ x }}{{ ',' if not loop.last }}{% endfor %}", "1,2"),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{% set ns = namespace(n=0) %}{% for x in m %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{{ m|tojson(indent=4) }}", '[\n    {\n        "a": 1\n    },\n    {\n        "a": 2\n    }\n]'),
        ("{{ m|map(attribute='a')|join('-') }} {{ m[0].items()|list }} {{ m == m }}", "1-2 [('a', 1)] True"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(12345678901) }}{{ 'ab'.find('b', 0, 99999) }}", "<12345678901>1"),
        ("{% if a is defined and a is string %}x{% elif 'b' in 'abc' %}y{% endif %}", "y"),
        ("{{ now }}{{ undefined_name }}", ""),
        ("{% set ns = namespace(a='x') %}{{ [ns]|map(attribute='a')|join }}", "x"),  # as GigaChat's
        ("{% set x %}a{{ 1 }}{% endset %}{% filter upper %}{{ x }}{% endfilter %}", "A1"),
        ("{{ 'a\nb'|indent(2) }}|{{ 1700000000|default(5) }}", "a\n  b|1700000000"),
    ],
)
def test_templates_in_good_faith_render_as_before(template: str, text: str) -> None:
    assert rendered(template, m=[{"a": 1}, {"a": 2}]) == text


def test_a_template_is_not_charged_for_what_earlier_renderings_did() -> None:
    template = environment().from_string("{% for x in range(600) %}{{ '" + "a" * 1000 + "' }}{% endfor %}")
    for _ in range(3):
        assert len(template.render()) == 600_000


def test_a_template_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(RequestError, match="longer than"):
        check_template("{{ a }}" * (1 << 20))


@pytest.mark.parametrize(
    "template",
    [
        "{% if a %}" * 300 + "{% endif %}" * 300,
        "{{ " + "(" * 9999,
        "{{ " + "[" * 200 + "]" * 200 + "}}",
        "{% for a in b %}" * 40 + "{% endfor %}" * 40,
    ],
)
def test_a_template_that_is_nested_too_deeply_is_refused_or_compiled(template: str) -> None:
    with suppress(RequestError):
        check_template(template)


def test_each_thread_has_a_budget_of_its_own() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: id(budgets.current), range(2)))
    assert id(budgets.current) not in found
