"""Tools of OpenAI's two APIs, in the form that vLLM takes (contract §5.1, §5.5).

Ollama makes a function of any tool, whatever its type, and ignores `tool_choice`. vLLM refuses a request for one tool
that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllama.ollama.openai.ignored import mention

_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The text that the tool gets."}},
    "required": ["input"],
}
_CHOICES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}  # "any" is Mistral's
_OF_VLLM = ("web_search_preview", "code_interpreter", "container", "mcp")
"""Tools that vLLM can run itself where an operator has set it up (`--tool-server`)."""


def settle_for_chat(body: dict[str, Any]) -> None:
    """Make functions of a chat completion's tools; without any, drop the fields about them."""
    body["tools"] = [function for tool in body.get("tools", ()) if (function := _nested(tool))]
    _settle_choice(body, lambda name: {"type": "function", "function": {"name": name}})


def settle_for_responses(body: dict[str, Any]) -> None:
    """Keep the Responses tools that vLLM can offer; without any, drop the fields about them."""
    body["tools"] = [settled for tool in body.get("tools", ()) if (settled := _flat(tool))]
    customs = {tool["name"] for tool in body["tools"] if tool["type"] == "custom"}
    _settle_choice(body, lambda name: {"type": "custom" if name in customs else "function", "name": name})


def _nested(tool: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a chat completion's tool as a function; None if it is none that a model could call."""
    kind = tool.get("type")
    if isinstance(custom := tool.get("custom"), dict):
        return {"type": "function", "function": _function_of_custom(custom)}
    if isinstance(function := tool.get("function"), dict):
        return {"type": "function", "function": _without_nulls(function)}
    if isinstance(tool.get("name"), str):  # the form of the Responses API
        if kind == "custom":
            return {"type": "function", "function": _function_of_custom(tool)}
        return {"type": "function", "function": {key: tool[key] for key in _without_nulls(tool) if key != "type"}}
    mention(f"a tool of the type {kind!r}")
    return None


def _flat(tool: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a tool of the Responses API as vLLM takes it; None if it would refuse or never use it."""
    kind = tool.get("type", "function")
    if isinstance(function := tool.get("function"), dict):  # the form of chat completions
        return {"type": "function", **_without_nulls(function)}
    if kind == "custom" and isinstance(tool.get("name"), str):
        return {"type": "custom", "name": tool["name"], "description": _described_with_format(tool)}
    if kind == "function" and isinstance(tool.get("name"), str):
        return {**_without_nulls(tool), "type": kind}
    if kind == "namespace" and isinstance(tool.get("tools"), list):
        members = [_flat(member) for member in tool["tools"] if isinstance(member, dict)]
        return {**_without_nulls(tool), "tools": [member for member in members if member]}
    if kind in _OF_VLLM:
        return dict(tool)
    mention(f"a tool of the type {kind!r}")
    return None


def _function_of_custom(custom: Mapping[str, Any]) -> dict[str, Any]:
    """Return the function with one text that stands for a custom tool."""
    return {
        "name": custom.get("name") or "",
        "description": _described_with_format(custom),
        "parameters": _INPUT,
    }


def _described_with_format(custom: Mapping[str, Any]) -> str:
    """Return a custom tool's description, with its grammar: vLLM enforces none in a tool's text."""
    description = custom.get("description")
    said = description if isinstance(description, str) else ""
    form = custom.get("format")
    grammar = form.get("grammar", form) if isinstance(form, dict) else {}  # chat completions nest it
    definition = grammar.get("definition") if isinstance(grammar, dict) else None
    if not isinstance(definition, str):
        return said
    syntax = grammar.get("syntax")
    named = f"this {syntax} grammar" if isinstance(syntax, str) else "this grammar"
    return f"{said}\n\nThe input must match {named}:\n{definition}".lstrip()


def _settle_choice(body: dict[str, Any], named: Callable[[str], dict[str, Any]]) -> None:
    """Write `tool_choice` as vLLM takes it; drop one without effect, and all fields if there are no tools."""
    if not body["tools"]:
        for name in _FIELDS:
            body.pop(name, None)
        return
    choice = body.pop("tool_choice", None)
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        choice = _offer_only_allowed(body, choice.get("allowed_tools", choice))
    if isinstance(choice, str):
        settled: Any = _CHOICES.get(choice)
    else:
        settled = named(name) if (name := _chosen_name(choice)) else None
    if settled is not None:
        body["tool_choice"] = settled
    elif choice is not None:
        mention("this value of 'tool_choice'")


def _offer_only_allowed(body: dict[str, Any], allowed: Any) -> Any:
    """Remove the tools that an `allowed_tools` choice does not name, and return its mode."""
    if not isinstance(allowed, dict):
        return None
    names = {_chosen_name(tool) for tool in allowed.get("tools") or () if isinstance(tool, dict)}
    kept = [tool for tool in body["tools"] if _chosen_name(tool) in names]
    body["tools"] = kept or body["tools"]
    return allowed.get("mode")


def _chosen_name(choice: Any) -> str:
    """Return the name in a tool, or in a choice of one; "" if there is none."""
    if not isinstance(choice, dict):
        return ""
    inner = choice.get("function") or choice.get("custom") or choice
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else ""


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item is not None}
