"""Renders Go templates as vLLM would: translated, then run by transformers with OpenAI-shaped messages."""

from __future__ import annotations

from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from vllama.ollama.gotemplate import to_jinja

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"type": "string", "description": "c or f"},
                "city": {"type": "string", "description": "the city"},
            },
            "required": ["city"],
        },
    },
}
WEATHER_FUNCTION = (
    '{"name":"get_weather","description":"Weather of a city","parameters":{"type":"object","properties":'
    '{"unit":{"type":"string","description":"c or f"},"city":{"type":"string","description":"the city"}},'
    '"required":["city"]}}'
)


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def tool(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


def call(name: str, arguments: dict[str, Any] | str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


CHAT = [system("Be brief."), user("Hello"), assistant("Hi!"), user("Who are you?")]
TOOL_ROUND = [
    user("Weather in Paris?"),
    assistant("", tool_calls=[call("get_weather", {"city": "Paris"})]),
    tool("sunny", name="get_weather", tool_call_id="call_1"),
]


def render(
    template: str, *messages: dict[str, Any], tools: list[dict[str, Any]] | None = None, **variables: Any
) -> str:
    """The prompt that a Go template makes of a conversation."""
    prompts, _ = render_jinja_template(
        [list(messages)], tools=tools, chat_template=to_jinja(template), add_generation_prompt=True, **variables
    )
    return str(prompts[0])


def value(expression: str, *messages: dict[str, Any], **variables: Any) -> str:
    """What a pipeline prints, in a template that sees `.Messages`."""
    return render(f"{{{{ {expression} }}}}{{{{ with .Messages }}}}{{{{ end }}}}", *messages, **variables)
