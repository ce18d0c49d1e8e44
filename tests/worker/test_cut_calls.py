"""Calls that were cut off do not end a reply of `/v1/messages`; written against vLLM 0.26, 0.32 and 0.33."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from vllama.worker.cut_calls import give_empty_inputs, say_stop_without_calls

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [('{"city": "Oslo"}', {"city": "Oslo"}), ('{"city": "Os', {}), ("", {}), ("[1]", {}), ('{"a": {"b": 1}', {})],
)
def test_a_call_that_was_cut_off_has_an_empty_input(arguments: str, read: dict[str, Any]) -> None:
    serving = importlib.import_module("vllm.entrypoints.anthropic.serving")
    chat = importlib.import_module("vllm.entrypoints.openai.chat_completion.protocol")
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    reply = chat.ChatCompletionResponse.model_validate(
        {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": usage}
    )
    messages = SimpleNamespace(
        messages_full_converter=lambda reply: serving.AnthropicServingMessages.messages_full_converter(
            SimpleNamespace(stop_reason_map={"length": "max_tokens"}), reply
        )
    )
    give_empty_inputs(messages)
    made = messages.messages_full_converter(reply)
    (block,) = made.content
    assert (block.type, block.name, block.input, made.stop_reason) == ("tool_use", "get_weather", read, "max_tokens")


@pytest.mark.anyio
@pytest.mark.parametrize(("calls", "reason"), [([], "stop"), (None, "stop"), (["a call"], "tool_calls")])
async def test_a_reply_without_calls_does_not_say_that_it_has_some(calls: list[str] | None, reason: str) -> None:
    chat = importlib.import_module("vllm.entrypoints.openai.chat_completion.serving").OpenAIServingChat
    assert inspect.iscoroutinefunction(chat.chat_completion_full_generator)
    choice = SimpleNamespace(finish_reason="tool_calls", message=SimpleNamespace(tool_calls=calls))

    async def of_vllm(request: str) -> Any:
        return SimpleNamespace(choices=[choice]) if request == "a request" else "an error"

    served = SimpleNamespace(chat_completion_full_generator=of_vllm)
    say_stop_without_calls(served)
    assert (await served.chat_completion_full_generator("a request")).choices[0].finish_reason == reason
    assert await served.chat_completion_full_generator("another") == "an error"
