"""Jinja macros that translated templates call; each template carries only those that it needs."""

from __future__ import annotations

MACROS = {
    # Go's JSON escapes what could end an HTML script. Arguments that are already JSON text are strings.
    "go_json": r"""
{%- macro go_json(value) -%}
  {{- (value if value is defined else none)|tojson(separators=(',', ':'))
      |replace('&', '\\u0026')|replace('<', '\\u003c')|replace('>', '\\u003e')
      |replace('\u2028', '\\u2028')|replace('\u2029', '\\u2029') -}}
{%- endmacro -%}
""",
    # Strings unchanged, nothing for nil, objects as JSON, lists of anything else in Go's brackets.
    "go_text": """
{%- macro go_text(value) -%}
  {%- if value is boolean -%}
    {{- 'true' if value else 'false' -}}
  {%- elif value is none or value is not defined -%}
  {%- elif value is mapping or (value is sequence and value is not string and value and value[0] is mapping) -%}
    {{- go_json(value) -}}
  {%- elif value is sequence and value is not string -%}
    {{- '[' -}}{%- for item in value -%}{{- ' ' if not loop.first -}}{{- go_text(item) -}}{%- endfor -%}{{- ']' -}}
  {%- else -%}
    {{- value -}}
  {%- endif -%}
{%- endmacro -%}
""",
    # Go's Sprint adds a space between operands of which neither is a string, Sprintln between all.
    "go_print": """
{%- macro go_print(values, line=false) -%}
  {%- for value in values -%}
    {%- set apart = line or (value is not string and loop.previtem is not string) -%}
    {{- ' ' if apart and not loop.first -}}
    {{- go_text(value) -}}
  {%- endfor -%}
  {{- '\\n' if line -}}
{%- endmacro -%}
""",
    # A template may come with a request, so its output is limited.
    "go_made": """
{%- macro go_made(text) -%}
  {{- text if text|length <= 16777216 else raise_exception('the template makes more than 16 Mi characters') -}}
{%- endmacro -%}
""",
    # Length in bytes, as in Go.
    "go_length": """
{%- macro go_length(value) -%}
  {{- (value.encode('utf-8') if value is string else value or [])|length -}}
{%- endmacro -%}
""",
    "go_yesterday": """
{%- macro go_yesterday() -%}
  {%- set year, month, day = strftime_now('%Y %m %d').split(' ')|map('int') -%}
  {%- if day > 1 -%}
    {{- '%04d-%02d-%02d'|format(year, month, day - 1) -}}
  {%- elif month == 1 -%}
    {{- '%04d-12-31'|format(year - 1) -}}
  {%- else -%}
    {%- set leap = (year % 4 == 0 and year % 100 != 0) or year % 400 == 0 -%}
    {%- set days = 30 if month in [5, 7, 10, 12] else 31 if month != 3 else 29 if leap else 28 -%}
    {{- '%04d-%02d-%02d'|format(year, month - 1, days) -}}
  {%- endif -%}
{%- endmacro -%}
""",
    "go_typescript": """
{%- macro go_typescript(property) -%}
  {%- set names = {
    'string': 'string', 'number': 'number', 'integer': 'number', 'boolean': 'boolean', 'null': 'null',
    'array': 'any[]', 'object': 'Record<string, any>'
  } -%}
  {%- set property = property if property is mapping else {} -%}
  {%- for option in property['anyOf'] or [] -%}
    {{- ' | ' if not loop.first -}}{{- go_typescript(option) -}}
  {%- else -%}
    {%- set types = [property['type']] if property['type'] is string else property['type'] or ['any'] -%}
    {%- for name in types -%}{{- ' | ' if not loop.first -}}{{- names.get(name, 'any') -}}{%- endfor -%}
  {%- endfor -%}
{%- endmacro -%}
""",
}

_NEEDS = {"go_text": ("go_json",), "go_print": ("go_json", "go_text")}


def definitions(program: str) -> str:
    """Return the definitions of the macros that a program calls, directly or indirectly."""
    used = {name for name in MACROS if f"{name}(" in program}
    needed = used.union(*(_NEEDS.get(name, ()) for name in used))
    return "".join(text.strip() + "\n" for name, text in MACROS.items() if name in needed)
