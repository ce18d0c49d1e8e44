"""Tool calls that a limit or a stop string cut off, in replies of `/v1/messages` and `/v1/chat/completions`.

vLLM decodes the arguments of each call for the block `tool_use`, and a call that it forced (`tool_choice`) is a call
from its first token on: one that is cut off made the whole request fail. Anthropic's own API gives it an empty input.
With `tool_choice: "required"`, a reply whose call a stop string cut off said `tool_calls` and had none.
Written against vLLM 0.26, 0.32 and 0.33 (`AnthropicServingMessages.messages_full_converter`,
`OpenAIServingChat.chat_completion_full_generator`); `tests/worker/test_cut_calls.py` says what of it is used.
"""

from __future__ import annotations

from typing import Any

import orjson


def give_empty_inputs(messages: Any) -> None:
    """Let calls whose arguments are no JSON object have none."""
    convert = messages.messages_full_converter

    def converted(reply: Any) -> Any:
        for choice in reply.choices:
            for call in choice.message.tool_calls or ():
                if not _is_object(call.function.arguments):
                    call.function.arguments = "{}"
        return convert(reply)

    messages.messages_full_converter = converted


def say_stop_without_calls(chat: Any) -> None:
    """Let a reply that has no calls not end with the reason `tool_calls`."""
    of_vllm = chat.chat_completion_full_generator

    async def reply(*arguments: Any, **named: Any) -> Any:
        made = await of_vllm(*arguments, **named)
        for choice in getattr(made, "choices", ()):  # an error has none
            if choice.finish_reason == "tool_calls" and not choice.message.tool_calls:
                choice.finish_reason = "stop"
        return made

    chat.chat_completion_full_generator = reply


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
