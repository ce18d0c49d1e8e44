"""Calls as plain JSON on `/api` and on vLLM's own routes, beside what vLLM's own parsers read."""

from __future__ import annotations

import importlib
from typing import Any

import orjson
import pytest
from model_output import WEATHER, Said, Speaker

# vLLM is imported (its imports warn), but no engine started.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

HERMES = Speaker(tool="hermes", plain=("<tool_call>", "</tool_call>"))
QWEN = Speaker(
    tool="hermes",
    reasoning="qwen3",
    special=("<|im_start|>", "<|im_end|>"),
    plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
)
JSON = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
TAGGED = f"<tool_call>\n{JSON}\n</tool_call>"
OSLO = ("get_weather", {"city": "Oslo"})


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (JSON, Said("", "", (OSLO,))),
        (f"```json\n{JSON}\n```", Said("", "", (OSLO,))),
        (f"[{JSON}, {JSON}]", Said("", "", (OSLO, OSLO))),
        (f"<tool_call>\n{{{JSON}}}\n</tool_call>", Said("", "", (OSLO,))),
        ('{"city": "Oslo", "degrees": 7}', Said('{"city": "Oslo", "degrees": 7}')),
        ("It is sunny.", Said("It is sunny.")),
    ],
)
def test_a_reply_of_the_api_is_a_call_or_text_whole_and_streamed(output: str, said: Said) -> None:
    assert HERMES.whole(output) == said
    assert HERMES.streamed(output) == said
    assert HERMES.streamed(output, cuts=[1, 4, 9]) == said


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (TAGGED, ("", "", [OSLO])),
        (JSON, ("", "", [OSLO])),
        (f"```json\n{JSON}\n```", ("", "", [OSLO])),
        (f"I will look.\n{JSON}", ("", f"I will look.\n{JSON}", [])),
        ('{"city": "Oslo"}', ("", '{"city": "Oslo"}', [])),
        (f"<think>\nHm.\n</think>\n\n{JSON}", ("Hm.\n", "", [OSLO])),
        (f"<think>\n{JSON}\n</think>\n\nHello", (f"{JSON}\n", "Hello", [])),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_of_vllm_s_own_routes_is_a_call_or_text(output: str, said: Any, *, stream: bool) -> None:
    assert _reply(output, stream=stream, tools=[WEATHER], tool_choice="auto") == said


@pytest.mark.parametrize(
    ("doubled", "said"),
    [
        (f"<tool_call>\n{{{JSON}}}\n</tool_call>", ("", "", [OSLO])),
        (f"<tool_call>{{{JSON}}}</tool_call>", ("", "", [OSLO])),
        ("<tool_call>\n{{not json", ("", "<tool_call>\n{{not json", [])),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_in_doubled_braces_between_the_family_s_tags_is_a_call(doubled: str, said: Any, *, stream: bool) -> None:
    assert _reply(doubled, stream=stream, tools=[WEATHER], tool_choice="auto") == said


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [WEATHER], "tool_choice": "none"},
        {"tools": [WEATHER], "response_format": {"type": "json_object"}},
        {"tools": [WEATHER], "structured_outputs": {"json": {"type": "object"}}},
    ],
    ids=["no tools", "none", "response_format", "structured_outputs"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_json_is_text_where_no_call_may_be_made_or_a_format_was_asked_for(fields: Any, *, stream: bool) -> None:
    assert _reply(JSON, stream=stream, **fields) == ("", JSON, [])


def _reply(output: str, *, stream: bool, **fields: Any) -> tuple[str, str, list[Any]]:
    """Return thinking, text and calls that vLLM's chat route would send with its parsers as the worker changes them.

    The model thinks only where the output does, because vLLM's parser takes text without a tag for thinking.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import ParserManager

    trimming = importlib.import_module("vllama.worker.trimming_parsers").trimming
    reading = importlib.import_module("vllama.worker.untagged_parsers").reading_untagged_calls
    speaker = QWEN if "<think>" in output else HERMES
    parsers = ParserManager.get_parser(
        tool_parser_name=speaker.tool,
        reasoning_parser_name=speaker.reasoning,
        enable_auto_tools=True,
        model_name="model",
    )
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "Hello"}], **fields)
    parser = trimming(reading(parsers))(speaker._tokenizer(), request.tools, chat_template_kwargs={})
    ids = speaker.encode(output)
    if not stream:
        thinking, text, calls = parser.parse(output, request, enable_auto_tools=True, model_output_token_ids=ids)
        return thinking or "", text or "", [(call.name, orjson.loads(call.arguments)) for call in calls or ()]
    deltas = [
        parser.parse_delta(
            delta_text=speaker._decode([token], request),
            delta_token_ids=[token],
            request=request,
            prompt_token_ids=[],
            finished=index == len(ids) - 1,
        )
        for index, token in enumerate(ids)
    ]
    told = [delta for delta in deltas if delta is not None]
    functions = [call.function for delta in told for call in delta.tool_calls]
    names = [function.name for function in functions if function.name]
    arguments = "".join(function.arguments or "" for function in functions)
    return (
        "".join(delta.reasoning or "" for delta in told),
        "".join(delta.content or "" for delta in told),
        [(name, orjson.loads(arguments)) for name in names],
    )
