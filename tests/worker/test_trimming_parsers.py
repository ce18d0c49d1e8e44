"""Replies of vLLM's own routes without the white space that Ollama removes, with vLLM's own parsers."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
from model_output import WEATHER, Speaker

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]

QWEN = Speaker(
    tool="hermes",
    reasoning="qwen3",
    special=("<|im_start|>", "<|im_end|>"),
    plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
)
CALLER = Speaker(tool="hermes", plain=("<tool_call>", "</tool_call>"))
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


class Reply:
    """What a client gets of an output: thinking, text, names of calls, and all deltas where it was streamed."""

    def __init__(self, speaker: Speaker, output: str, *, stream: bool, tools: bool = True) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser import ParserManager

        trimming = importlib.import_module("vllama.worker.trimming_parsers").trimming
        parser_class = ParserManager.get_parser(
            tool_parser_name=speaker.tool,
            reasoning_parser_name=speaker.reasoning,
            enable_auto_tools=True,
            model_name="model",
        )
        offered: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "auto"} if tools else {}
        request = ChatCompletionRequest(messages=[{"role": "user", "content": "Hello"}], **offered)
        parser = trimming(parser_class)(speaker._tokenizer(), request.tools, chat_template_kwargs={})
        ids = speaker.encode(output)
        self.deltas: list[dict[str, Any]] = []
        if not stream:
            thinking, text, calls = parser.parse(output, request, enable_auto_tools=True, model_output_token_ids=ids)
            self.said = (thinking or "", text or "", [call.name for call in calls or ()])
            return
        for index, token in enumerate(ids):
            delta = parser.parse_delta(
                delta_text=speaker._decode([token], request),
                delta_token_ids=[token],
                request=request,
                prompt_token_ids=[],
                finished=index == len(ids) - 1,
            )
            if delta is not None:
                self.deltas.append(delta.model_dump(exclude_unset=True))
        called = [call for delta in self.deltas for call in delta.get("tool_calls", ())]
        self.said = (
            "".join(delta.get("reasoning", "") for delta in self.deltas),
            "".join(delta.get("content", "") for delta in self.deltas),
            [call["function"]["name"] for call in called if call["function"].get("name")],
        )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("<think>\nHm.\n</think>\n\nHello", ("Hm.\n", "Hello", [])),
        ("<think>\n\n</think>\n\nHello", ("", "Hello", [])),
        (f"<think>\nHm.\n</think>\n\n{CALL}", ("Hm.\n", "", ["get_weather"])),
        (f"<think>\nHm.\n</think>\n\nI will look.\n\n{CALL}\n", ("Hm.\n", "I will look.", ["get_weather"])),
    ],
)
def test_a_model_that_thinks_says_nothing_but_its_text(output: str, said: Any, *, stream: bool) -> None:
    reply = Reply(QWEN, output, stream=stream)
    assert reply.said == said
    assert all(delta.values() for delta in reply.deltas)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("output", "said"),
    [(f"\n\n{CALL}", ("", "", ["get_weather"])), (f"Well.\n{CALL}", ("", "Well.", ["get_weather"]))],
)
def test_no_empty_message_precedes_a_call(output: str, said: Any, *, stream: bool) -> None:
    reply = Reply(CALLER, output, stream=stream)
    assert reply.said == said
    assert all(set(delta) & {"tool_calls", "content"} for delta in reply.deltas)


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_text_alone_stays_as_it_is(*, stream: bool, tools: bool) -> None:
    output = "\n\n# Title\n\n- one \n- two\n"
    assert Reply(CALLER, output, stream=stream, tools=tools).said == ("", output, [])


def test_vllm_s_parser_has_what_is_used() -> None:
    parser = importlib.import_module("vllm.parser.abstract_parser").Parser
    assert list(inspect.signature(parser.parse).parameters)[:3] == ["self", "model_output", "request"]
    assert {"request", "finished"} <= set(inspect.signature(parser.parse_delta).parameters)
    for module, attribute in (("chat_completion", "parser_cls"), ("responses", "parser")):
        serving = importlib.import_module(f"vllm.entrypoints.openai.{module}.serving")
        assert f"self.{attribute} = ParserManager.get_parser(" in inspect.getsource(serving)
    serving = importlib.import_module("vllm.entrypoints.openai.chat_completion.serving")
    assert serving.DeltaMessage is importlib.import_module("vllama.worker.trimming_parsers").DeltaMessage
