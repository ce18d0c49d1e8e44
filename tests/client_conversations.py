"""The shapes of conversations that clients send, in the form in which vLLM gives them to a chat template.

The first 17 were counted in requests of public clients; the others are their relatives. Each value is the messages and
the tools.
"""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]
Shape = tuple[list[Message], list[dict[str, Any]] | None]


def said(role: str, content: str | None, **fields: Any) -> Message:
    """Return a message."""
    return {"role": role, "content": content, **fields}


def call(call_id: str | None = "call_abc12345", city: str = "Paris") -> dict[str, Any]:
    """Return a call of `get_weather`."""
    made: dict[str, Any] = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
    return {"id": call_id, **made} if call_id else made


def result(call_id: str | None = "call_abc12345", content: str = "sunny", **fields: Any) -> Message:
    """Return the result of a call."""
    return {"role": "tool", "content": content, **({"tool_call_id": call_id} if call_id else {}), **fields}


def calling(*calls: dict[str, Any], content: str | None = "") -> Message:
    """Return an assistant's message with calls."""
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


HELLO = said("user", "Hello.")
AGAIN = said("user", "Once more, please.")
ANSWER = said("assistant", "Hi there.")
BRIEF = said("system", "Be brief.")

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city"}},
            "required": ["city"],
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}

COUNTED: dict[str, Shape] = {
    "plain": ([HELLO], None),
    "system": ([BRIEF, HELLO], None),
    "two users in a row": ([said("user", "Here is a text."), said("user", "What is it about?")], None),
    "late system": ([HELLO, ANSWER, said("system", "Now in French."), AGAIN], None),
    "two systems": ([BRIEF, said("system", "Be kind."), HELLO], None),
    "assistant first": ([ANSWER, AGAIN], None),
    "only system": ([BRIEF], None),
    "ends with the assistant": ([HELLO, said("assistant", "The capital of France is")], None),
    "tools": ([HELLO], [WEATHER]),
    "a tool without parameters": ([HELLO], [TIME]),
    "call and result": ([HELLO, calling(call()), result()], [WEATHER]),
    "result without id": ([HELLO, calling(call(None)), result(None)], [WEATHER]),
    "result with the tool's name": ([HELLO, calling(call()), result(name="get_weather")], [WEATHER]),
    "two calls": (
        [HELLO, calling(call(), call("call_def67890", "Rome")), result(), result("call_def67890", "rainy")],
        [WEATHER],
    ),
    "call with null content": ([HELLO, calling(call(), content=None), result()], [WEATHER]),
    "calls in the history and no tools now": (
        [HELLO, calling(call()), result(), said("assistant", "It is sunny."), AGAIN],
        None,
    ),
    "thinking in the history": (
        [HELLO, {**ANSWER, "reasoning": "A greeting.", "reasoning_content": "A greeting."}, AGAIN],
        None,
    ),
}

SHAPES: dict[str, Shape] = {
    **COUNTED,
    "the user breaks in after a result": ([HELLO, calling(call()), result(), AGAIN], [WEATHER]),
    "call without result": ([HELLO, calling(call()), AGAIN], [WEATHER]),
    "result without call": ([HELLO, result()], [WEATHER]),
    "system, then assistant": ([BRIEF, ANSWER, AGAIN], None),
    "only assistant": ([ANSWER], None),
    "system last": ([HELLO, ANSWER, AGAIN, said("system", "Answer in French.")], None),
    "another role": ([HELLO, said("critic", "Too polite."), AGAIN], None),
    "the role function": ([HELLO, calling(call()), said("function", "sunny", name="get_weather")], [WEATHER]),
    "an empty answer": ([HELLO, said("assistant", ""), AGAIN], None),
    "two answers in a row": ([HELLO, ANSWER, said("assistant", "How are you?"), AGAIN], None),
    "a tool with null fields": (
        [HELLO],
        [{"type": "function", "function": {"name": "get_time", "description": None, "parameters": None}}],
    ),
    "text beside a call": (
        [HELLO, calling(call(), content="Let me look."), result(), said("assistant", "It is sunny."), AGAIN],
        [WEATHER],
    ),
    "a long run of an agent": (
        [
            BRIEF,
            HELLO,
            calling(call("1")),
            result("1"),
            calling(call("2", "Rome"), content="One more."),
            result("2", "rainy"),
            said("assistant", "Done."),
            AGAIN,
            calling(call("3"), call("4", "Oslo")),
            result("3"),
            result("4", "snowy"),
        ],
        [WEATHER],
    ),
}
