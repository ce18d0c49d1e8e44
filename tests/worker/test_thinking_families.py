"""How the families mark their thinking, and that clients get it apart from the answer, without the marks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_output import Said, Speaker

# vLLM is imported (its imports warn), but no engine started.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

THOUGHT = "Paris or Zürich? The user said <b>Paris</b>."
ANSWER = "It is sunny: 20 °C.\n\n- dry\n- warm"
CALL = ("get_weather", {"city": "Paris"})

_THINK = ("<think>", "</think>")
_HERMES = ("<tool_call>", "</tool_call>")
_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
_CHATML = ("<|im_start|>", "<|im_end|>")
_GEMMA4 = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|turn>", "<turn|>")
_JSON_CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'


@dataclass(frozen=True, slots=True)
class Family:
    """How a family writes: `thought` before its answer after `prompt`; `silent` is its prompt with thinking off."""

    speaker: Speaker
    prompt: str
    thought: str
    call: str
    silent: str
    before_answer: str = ""
    cut: str = "Zürich"
    marks: tuple[str, ...] = _THINK

    @property
    def thinking_cut_off(self) -> str:
        """A reply that ends in its thinking."""
        return self.thought[: self.thought.index(self.cut) + len(self.cut)]


FAMILIES = {
    "Qwen 3": Family(
        Speaker(tool="hermes", reasoning="qwen3", special=_CHATML, plain=(*_THINK, *_HERMES)),
        "<|im_start|>assistant\n",
        f"<think>\n{THOUGHT}\n</think>\n\n",
        f"<tool_call>\n{_JSON_CALL}\n</tool_call>",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "Qwen 3 after an earlier turn": Family(
        Speaker(tool="hermes", reasoning="qwen3", special=_CHATML, plain=(*_THINK, *_HERMES)),
        "<|im_start|>assistant\n<think>\nOld.\n</think>\n\nOld.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        f"<think>\n{THOUGHT}\n</think>\n\n",
        f"<tool_call>\n{_JSON_CALL}\n</tool_call>",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "Qwen 3 2507 and QwQ": Family(
        Speaker(tool="hermes", reasoning="qwen3", special=_CHATML, plain=(*_THINK, *_HERMES)),
        "<|im_start|>assistant\n<think>\n",
        f"{THOUGHT}\n</think>\n\n",
        f"<tool_call>\n{_JSON_CALL}\n</tool_call>",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "DeepSeek R1 0528": Family(
        Speaker(tool="deepseek_v3", reasoning="deepseek_r1", plain=(*_THINK, *_DEEPSEEK)),
        "<｜Assistant｜><think>\n",
        f"{THOUGHT}\n</think>\n\n",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "<｜Assistant｜><think>\n\n</think>\n\n",
    ),
    "DeepSeek R1, which opens its thinking itself": Family(
        Speaker(tool="deepseek_v3", reasoning="deepseek_r1", plain=(*_THINK, *_DEEPSEEK)),
        "<｜Assistant｜>",
        f"<think>\n{THOUGHT}\n</think>\n\n",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "<｜Assistant｜>",
    ),
    "DeepSeek V3.1": Family(
        Speaker(tool="deepseek_v31", reasoning="deepseek_v3", plain=(*_THINK, *_DEEPSEEK)),
        "<｜Assistant｜><think>",
        f"{THOUGHT}</think>",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜Assistant｜></think>",
    ),
    "Magistral": Family(
        Speaker(tool="mistral", reasoning="mistral", special=("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]")),
        "[/INST]",
        f"[THINK]{THOUGHT}[/THINK]",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        "[/INST]",
        marks=("[THINK]", "[/THINK]"),
    ),
    "Gemma 4": Family(
        Speaker(tool="gemma4", reasoning="gemma4", special=_GEMMA4),
        "<|turn>model\n",
        f"<|channel>thought\n{THOUGHT}\n<channel|>",
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>',
        "<|turn>model\n",
        marks=("<|channel>", "<channel|>", "thought\n"),
    ),
    "Granite 3.2": Family(
        Speaker(tool="granite", reasoning="granite", special=("<|tool_call|>",)),
        "<|start_of_role|>assistant<|end_of_role|>",
        f"Here is my thought process:\n{THOUGHT}\nHere is my response:\n",
        f"<|tool_call|>[{_JSON_CALL}]",
        "<|start_of_role|>assistant<|end_of_role|>",
        marks=("my thought process", "my response", "Here"),
    ),
    "GLM 4.5": Family(
        Speaker(
            tool="glm45",
            reasoning="glm45",
            plain=(*_THINK, *_HERMES, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        ),
        "<|assistant|>",
        f"\n<think>{THOUGHT}</think>\n",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        "<|assistant|>\n<think></think>",
    ),
    "gpt-oss": Family(
        Speaker(tool="openai", reasoning="openai_gptoss", harmony=True),
        "<|start|>assistant",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant",
        '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        "<|start|>assistant",
        before_answer="<|channel|>final<|message|>",
        marks=("analysis", "<|", "assistant"),
    ),
    "gpt-oss after an earlier turn": Family(
        Speaker(tool="openai", reasoning="openai_gptoss", harmony=True),
        "<|start|>assistant<|channel|>final<|message|>Old.<|end|><|start|>user<|message|>Hi<|end|><|start|>assistant",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant",
        '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        "<|start|>assistant",
        before_answer="<|channel|>final<|message|>",
        marks=("analysis", "<|", "assistant"),
    ),
}

by_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
with_or_without_tools = pytest.mark.parametrize("tools", [True, False], ids=["tools", "no tools"])


@by_family
@with_or_without_tools
def test_thinking_and_answer_come_apart_without_marks(family: Family, tools: bool) -> None:
    output = family.thought + family.before_answer + ANSWER
    for said in (
        family.speaker.whole(output, prompt=family.prompt, tools=tools),
        family.speaker.streamed(output, prompt=family.prompt, tools=tools),
    ):
        assert (said.thinking.strip(), said.content, said.calls) == (THOUGHT, ANSWER, ())


@by_family
def test_a_call_after_thinking_is_a_call(family: Family) -> None:
    output = family.thought + family.call
    for said in (
        family.speaker.whole(output, prompt=family.prompt),
        family.speaker.streamed(output, prompt=family.prompt),
    ):
        assert (said.thinking.strip(), said.content.strip(), said.calls) == (THOUGHT, "", (CALL,))


@by_family
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_it_does_not_matter_how_many_tokens_come_at_once(family: Family, data: st.DataObject) -> None:
    output = family.thought + family.before_answer + ANSWER
    cuts = data.draw(st.sets(st.integers(1, len(family.speaker.encode(output)) - 1), min_size=1, max_size=12))
    said = family.speaker.streamed(output, prompt=family.prompt, cuts=cuts)
    assert (said.thinking.strip(), said.content.strip()) == (THOUGHT, ANSWER)


@by_family
def test_a_reply_cut_off_in_its_thinking_is_thinking_only(family: Family) -> None:
    expected = Said("", thinking="Paris or Zürich")
    assert family.speaker.whole(family.thinking_cut_off, prompt=family.prompt) == expected
    assert family.speaker.streamed(family.thinking_cut_off, prompt=family.prompt) == expected


@by_family
@with_or_without_tools
def test_with_thinking_off_all_is_answer(family: Family, tools: bool) -> None:
    output = family.before_answer + ANSWER
    assert family.speaker.whole(output, prompt=family.silent, tools=tools, think=False) == Said(ANSWER)
    assert family.speaker.streamed(output, prompt=family.silent, tools=tools, think=False) == Said(ANSWER)


@by_family
def test_with_thinking_off_calls_are_calls(family: Family) -> None:
    assert family.speaker.whole(family.call, prompt=family.silent, think=False) == Said("", calls=(CALL,))
    assert family.speaker.streamed(family.call, prompt=family.silent, think=False) == Said("", calls=(CALL,))


@by_family
def test_no_mark_is_left_in_either_part(family: Family) -> None:
    said = family.speaker.streamed(family.thought + family.before_answer + ANSWER, prompt=family.prompt)
    assert not [mark for mark in family.marks if mark in said.thinking + said.content]


def test_a_closing_tag_alone_separates_what_was_written_before_it() -> None:
    family = FAMILIES["DeepSeek R1, which opens its thinking itself"]
    said = family.speaker.whole(f"{THOUGHT}\n</think>\n\n{ANSWER}", prompt=family.prompt)
    assert (said.thinking.strip(), said.content) == (THOUGHT, ANSWER)
