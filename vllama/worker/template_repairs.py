"""Repairs of what a chat template refuses: each changes one kind of thing in a conversation, and keeps its content.

A template refuses by raising: on purpose ("Conversation roles must alternate"), or because it reads a field that the
client did not send. Ollama's own templates take every conversation, so its clients send every kind.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendering:
    """The input of a chat template: messages, tools, its own text, and further variables."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    template: str = ""
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Repair:
    """A named change. `what` completes the sentence "the chat template refuses …"; `done` says what was changed."""

    what: str
    done: str
    apply: Callable[[Rendering], Rendering]


_ROLES = frozenset({"system", "user", "assistant", "tool"})


def _other_roles(asked: Rendering) -> Rendering:
    """Take OpenAI's former `function` for `tool`, and let the user say what any other role says."""
    renamed = {"function": "tool"}
    return _with_messages(
        asked,
        [m if m["role"] in _ROLES else {**m, "role": renamed.get(m["role"], "user")} for m in asked.messages],
    )


def _empty_answers(asked: Rendering) -> Rendering:
    return _with_messages(
        asked, [m for m in asked.messages if m["role"] != "assistant" or m.get("content") or m.get("tool_calls")]
    )


def _null_contents(asked: Rendering) -> Rendering:
    return _with_messages(asked, [{**m, "content": ""} if m.get("content") is None else m for m in asked.messages])


def _no_tools(asked: Rendering) -> Rendering:
    return replace(asked, tools=[]) if asked.tools is None else asked


def _incomplete_tools(asked: Rendering) -> Rendering:
    """Fill in the parts of a tool that OpenAI's schema makes optional."""
    return replace(asked, tools=[_complete(tool) for tool in asked.tools]) if asked.tools else asked


def _complete(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    parameters = {"type": "object", "properties": {}, **(function.get("parameters") or {})}
    filled = {"description": function.get("description") or "", "parameters": parameters}
    return {"type": "function", **tool, "function": {**function, **filled}}


_CALL_ID = re.compile(r"[A-Za-z0-9]{9}")


def _call_ids(asked: Rendering) -> Rendering:
    """Give each call, and the result that belongs to it, an id of nine letters and digits, as Mistral's models need."""
    messages, waiting = [], list[tuple[str, str]]()  # calls without a result: the client's id and ours
    for number, message in enumerate(asked.messages):
        if calls := message.get("tool_calls"):
            ids = [_nine(call.get("id") or f"{number} {index}") for index, call in enumerate(calls)]
            waiting = [(call.get("id") or "", ours) for call, ours in zip(calls, ids, strict=True)]
            numbered = [{**call, "id": ours} for call, ours in zip(calls, ids, strict=True)]
            messages.append({**message, "tool_calls": numbered})
        elif message["role"] == "tool":
            stated = message.get("tool_call_id") or ""
            answered = next((pair for pair in waiting if pair[0] == stated), None)
            if answered is None and not stated and waiting:
                answered = waiting[0]
            if answered:
                waiting.remove(answered)
            messages.append({**message, "tool_call_id": answered[1] if answered else _nine(stated or str(number))})
        else:
            messages.append(message)
    return _with_messages(asked, messages)


def _nine(text: str) -> str:
    return text if _CALL_ID.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:9]


def _parallel_calls(asked: Rendering) -> Rendering:
    """Put each of several calls into a message of its own, followed by its result."""
    messages: list[Message] = []
    rest = list(asked.messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            messages.append(message)
            continue
        results = []
        while rest and rest[0]["role"] == "tool":
            results.append(rest.pop(0))
        for index, call in enumerate(calls):
            first = {} if index == 0 else {"content": ""}
            messages.append({**message, **first, "tool_calls": [call]})
            if result := _result_of(call, results):
                results.remove(result)
                messages.append(result)
        messages += results
    return _with_messages(asked, messages)


def _result_of(call: dict[str, Any], results: Sequence[Message]) -> Message | None:
    stated = call.get("id")
    return next((result for result in results if stated and result.get("tool_call_id") == stated), None) or next(
        (result for result in results if not result.get("tool_call_id")), None
    )


def _text_arguments(asked: Rendering) -> Rendering:
    """Write the arguments of calls as JSON, for templates that add them to a text."""
    return _with_messages(
        asked,
        [
            {**m, "tool_calls": [_with_text_arguments(c) for c in m["tool_calls"]]} if m.get("tool_calls") else m
            for m in asked.messages
        ],
    )


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(arguments or {}, ensure_ascii=False)}}


def _calls_in_words(asked: Rendering) -> Rendering:
    """Write calls into the assistant's text and results into the user's."""
    names: dict[str, str] = {}
    messages = []
    for message in asked.messages:
        calls = message.get("tool_calls")
        if calls:
            names |= {call.get("id") or "": call["function"]["name"] for call in calls}
            made = [{"name": c["function"]["name"], "arguments": c["function"].get("arguments") or {}} for c in calls]
            text = {"role": "assistant", "content": json.dumps({"tool_calls": made}, ensure_ascii=False)}
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            messages.append(_joined(kept, text) if message.get("content") else {**kept, **text})
        elif message["role"] in {"tool", "function"}:
            name = message.get("name") or names.get(message.get("tool_call_id") or "", "")
            result = {**({"name": name} if name else {}), "content": text_of(message.get("content"))}
            messages.append({"role": "user", "content": json.dumps({"tool_response": result}, ensure_ascii=False)})
        else:
            messages.append(message)
    return _with_messages(asked, messages)


def _late_systems(asked: Rendering) -> Rendering:
    """Join all system messages into one at the beginning."""
    systems = [message for message in asked.messages if message["role"] == "system"]
    if not systems or (len(systems) == 1 and asked.messages[0] is systems[0]):
        return asked
    first, *others = systems
    for other in others:
        first = _joined(first, other)
    return _with_messages(asked, [first, *(message for message in asked.messages if message["role"] != "system")])


def _system_message(asked: Rendering) -> Rendering:
    """Put the system messages before the first user message's text; alone, they become the user's message."""
    asked = _late_systems(asked)
    if not asked.messages or asked.messages[0]["role"] != "system":
        return asked
    system, *others = asked.messages
    turned = {**system, "role": "user"}
    if others and others[0]["role"] == "user":
        return _with_messages(asked, [{**others[0], **_joined(turned, others[0])}, *others[1:]])
    return _with_messages(asked, [turned, *others])


def _equal_roles(asked: Rendering) -> Rendering:
    """Join messages of one role that follow each other."""
    messages: list[Message] = []
    for message in asked.messages:
        last = messages[-1] if messages else {}
        joins = message["role"] in {"user", "assistant"} and last.get("role") == message["role"]
        if joins and not last.get("tool_calls"):
            messages[-1] = {**last, **message, **_joined(last, message)}
        else:
            messages.append(message)
    return _with_messages(asked, messages)


def _missing_turns(asked: Rendering) -> Rendering:
    """Put empty messages where a turn is missing: the user's at the start, the assistant's after a tool's result."""
    messages: list[Message] = []
    for message in asked.messages:
        before = messages[-1]["role"] if messages else "system"
        if before == "system" and message["role"] not in {"system", "user"}:
            messages.append({"role": "user", "content": ""})
        elif before == "tool" and message["role"] == "user":
            messages.append({"role": "assistant", "content": ""})
        messages.append(message)
    return _with_messages(asked, messages)


def _own_variables(asked: Rendering) -> Rendering:
    """Give the variables that Firefunction's template wants beside messages and tools."""
    offered = {
        "functions": json.dumps([tool.get("function", tool) for tool in asked.tools or ()], ensure_ascii=False),
        "datetime": f"{date.today():%B %d %Y}",  # noqa: DTZ011 - of the server's time zone
    }
    wanted = {name: value for name, value in offered.items() if re.search(rf"\b{name}\b", asked.template)}
    return replace(asked, variables=wanted) if wanted else asked


_SPELLINGS = (
    # Lists cannot be changed in the sandbox in which templates run, but replaced.
    (r"\{%(-?)\s*set\s+\w+\s*=\s*([\w.]+)\.append\((.+?)\)\s*(-?)%\}", r"{%\1 set \2 = \2 + [\3] \4%}"),
    (r"\{%(-?)\s*set\s+([\w.]+)\s*=\s*([\w.]+)\.pop\(0\)\s*(-?)%\}", r"{%\1 set \2 = \3[0] %}{% set \3 = \3[1:] \4%}"),
    # What `map` returns is no list yet, and cannot be written as JSON.
    (r"\|\s*map\(([^()]*)\)\s*\|\s*tojson", r"| map(\1) | list | tojson"),
)


def _spellings(asked: Rendering) -> Rendering:
    """Spell what other engines render and transformers' does not in a way that both do."""
    template = asked.template
    for pattern, respelled in _SPELLINGS:
        template = re.sub(pattern, respelled, template)
    return replace(asked, template=template)


COMMON = (
    Repair("messages without content", "their content was given as empty", _null_contents),
    Repair("roles other than system, user, assistant and tool", "they were given as user or tool", _other_roles),
    Repair("a request without tools", "an empty list of tools was given", _no_tools),
    Repair("tools without description or parameters", "empty ones were given", _incomplete_tools),
    Repair("the ids of tool calls", "ids of nine letters and digits were given", _call_ids),
    Repair("several tool calls at once", "they were given one after the other", _parallel_calls),
    Repair("a system message after the first message", "all were joined at the beginning", _late_systems),
    Repair("an assistant's message that is empty", "it was left out", _empty_answers),
    Repair("messages of one role in a row", "they were joined", _equal_roles),
    Repair("a conversation in which a turn is missing", "an empty message was given there", _missing_turns),
    Repair("a system message", "it was put before the first user message", _system_message),
    Repair("to run without variables of its own", "they were given", _own_variables),
    Repair("to run as it is written", "its spelling was changed", _spellings),
)
"""From gentle to intrusive, in the order in which they are applied."""

LAST_RESORTS = (
    Repair("arguments of tool calls that are objects", "they were given as JSON text", _text_arguments),
    Repair("tool calls and results where they stand", "they were given as text", _calls_in_words),
)
"""If the common repairs alone do not help, one of these is applied before them. They change more than is needed."""


def repaired(asked: Rendering, repairs: Iterable[Repair]) -> Rendering:
    """Apply the repairs in order."""
    for repair in repairs:
        asked = repair.apply(asked)
    return asked


def applicable(asked: Rendering, repairs: Iterable[Repair]) -> tuple[Repair, ...]:
    """Return those of the repairs that change something when they are applied in order."""
    found = []
    for repair in repairs:
        changed = repair.apply(asked)
        if changed != asked:
            found.append(repair)
            asked = changed
    return tuple(found)


def _with_messages(asked: Rendering, messages: list[Message]) -> Rendering:
    return replace(asked, messages=messages)


def _joined(first: Message, second: Message) -> Message:
    """Return role and content of a message that says what both say: as text, or as parts where one has parts."""
    contents = [content for content in (first.get("content"), second.get("content")) if content]
    if all(isinstance(content, str) for content in contents):
        return {"role": first["role"], "content": "\n\n".join(contents)}
    parts = [[{"type": "text", "text": content}] if isinstance(content, str) else content for content in contents]
    return {"role": first["role"], "content": [part for content in parts for part in content]}


def text_of(content: Any) -> str:
    """Return the text of a message's content, which may be a list of parts or missing."""
    if isinstance(content, list):
        return "\n".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content or ""


def texts_of(asked: Rendering) -> list[str]:
    """Return the texts and the names of calls in a conversation, which a prompt should contain."""
    texts = []
    for message in asked.messages:
        if calls := message.get("tool_calls"):
            texts += [call["function"]["name"] for call in calls]  # many models' formats have no text beside calls
        elif isinstance(content := message.get("content"), str):
            texts.append(content.strip())
    return texts
