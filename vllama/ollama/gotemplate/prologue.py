"""The beginning of every translated template: converts OpenAI-shaped messages to the data of Ollama's templates.

`root` is that data, with Go's names. Messages are collated as in Ollama: consecutive messages of one role are joined
with a blank line, except `tool`; `.System` is all system messages joined. Unlike Ollama, joining loses no tool calls.
"""

from __future__ import annotations

from collections.abc import Collection

_MESSAGES = r"""
{%- set go = namespace(messages=[], systems=[], turns=0) -%}
{%- for message in messages -%}
  {%- set content = message['content'] or '' -%}
  {%- set content = content if content is string else content|map(attribute='text')|join('\n') -%}
  {%- set calls = message['tool_calls'] or [] -%}
  {%- set thought = message['reasoning'] or message['reasoning_content'] or message['thinking'] or '' -%}
  {%- set tool = message['tool_name'] or message['name'] or '' -%}
  {%- set this = dict(message, content=content, thinking=thought, tool_calls=calls, tool_name=tool) -%}
  {%- set before = go.messages[-1] if go.messages else {} -%}
  {%- set text = (before['content'] or '') ~ '\n\n' ~ content -%}
  {%- set joined = dict(before, content=text, tool_calls=(before['tool_calls'] or []) + calls) -%}
  {%- if message['role'] == 'system' -%}
    {%- set go.systems = go.systems + [content] -%}
  {%- endif -%}
  {%- if before and before['role'] == message['role'] and message['role'] != 'tool' -%}
    {%- set go.messages = go.messages[:-1] + [joined] -%}
  {%- else -%}
    {%- set go.messages = go.messages + [this] -%}
  {%- endif -%}
{%- endfor -%}
"""

_THINKING = """
{%- set go.level = reasoning_effort or '' -%}
{%- set go.think = enable_thinking if enable_thinking is defined and enable_thinking is not none else none -%}
{%- set go.think = true if go.think is none and go.level else go.think -%}
"""

# Each round is one run of the template; the last, still open, is the one that the model continues.
_ROUNDS = """
{%- set go.rounds = [] -%}
{%- set go.system = '' -%}
{%- set go.prompt = '' -%}
{%- set go.response = '' -%}
{%- for message in go.messages -%}
  {%- set role = message['role'] -%}
  {%- if (role == 'system' and (go.prompt or go.response)) or (role == 'user' and go.response) -%}
    {%- set go.rounds = go.rounds + [dict(root, System=go.system, Prompt=go.prompt, Response=go.response)] -%}
    {%- set go.system = '' -%}
    {%- set go.prompt = '' -%}
    {%- set go.response = '' -%}
  {%- endif -%}
  {%- if role == 'system' -%}
    {%- set go.system = message['content'] -%}
  {%- elif role == 'user' -%}
    {%- set go.prompt = message['content'] -%}
  {%- elif role == 'assistant' -%}
    {%- set go.response = message['content'] -%}
  {%- endif -%}
{%- endfor -%}
{%- set go.rounds = go.rounds + [dict(root, System=go.system, Prompt=go.prompt, Response=go.response)] -%}
"""

_THINK = {
    "Think": "(go.think or false)",
    "ThinkLevel": "((go.level or 'medium') if go.think else '')",
    "IsThinkSet": "(go.think is not none)",
}
_ALWAYS = {"Response": "''", "Tools": "(tools or [])"}
_CONVERSATION = {"System": r"(go.systems|join('\n\n'))", "Messages": "go.messages"}

FILLING_IN = "(prompt and suffix)"
"""Jinja condition: whether the request is to fill in the middle between prompt and suffix."""


def prologue(names: Collection[str], *, in_rounds: bool) -> str:
    """Return Jinja code that sets `root`, and `go.rounds` if the template runs once per round.

    Contains only what `names`, the fields that the template uses, require, so that `prompt`, `suffix`,
    `enable_thinking` and `reasoning_effort` are variables only of templates that read them.
    """
    thinks = [name for name in _THINK if name in names]
    parts = [_MESSAGES]
    if thinks:
        parts.append(_THINKING)
    always = {name: code for name, code in {**_ALWAYS, **_THINK}.items() if name in names}
    conversation = {} if in_rounds else {name: code for name, code in _CONVERSATION.items() if name in names}
    parts.append(f"\n{{%- set root = {_dictionary({**always, **conversation})} -%}}\n")
    if in_rounds:
        parts.append(_ROUNDS)
    if "Suffix" in names:
        gap = _dictionary({**always, "Prompt": "prompt", "Suffix": "suffix"})
        target = f"go.rounds = [{gap}]" if in_rounds else f"root = {gap}"
        parts.append(f"\n{{%- if {FILLING_IN} -%}}\n  {{%- set {target} -%}}\n{{%- endif -%}}\n")
    return "".join(part.strip("\n") + "\n" for part in parts)


def _dictionary(entries: dict[str, str]) -> str:
    return "{" + ", ".join(f"'{name}': {code}" for name, code in entries.items()) + "}"
