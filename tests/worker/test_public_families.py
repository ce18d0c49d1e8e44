"""Public models' calls and thinking, read by the parsers that are chosen from their templates.

`test_tool_families.py` and `test_thinking_families.py` have the most widespread families, these tests the others of
which public templates exist.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import pytest
from model_output import Said, Speaker

from vllama.installed.registry import installed_vllm
from vllama.store.parsers import Traits, choose_reasoning_parser, choose_tool_parser

# vLLM is imported (its imports warn), but no engine started.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

THOUGHT = "Paris or Zürich? The user said Paris."
ANSWER = "It is sunny: 20 °C.\n\n- dry\n- warm"
PARIS = '{"city": "Paris"}'
ZURICH = '{"city": "Zürich"}'
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("get_weather", {"city": "Paris"}),
    ("get_weather", {"city": "Zürich"}),
)


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's files look to the rules that choose parsers, and what its models write.

    `prompt` is how the template begins a reply, and `silent` the same with thinking off. `thought` and `answer` are the
    two parts of a reply; `calls` are one and two calls.
    """

    model_type: str
    template: str
    calls: tuple[str, str] = ("", "")
    special: str = ""
    plain: str = ""
    prompt: str = ""
    thought: str = ""
    silent: str | None = None
    answer: str = "{}"

    @property
    def speaker(self) -> Speaker:
        """The family with the parsers that are chosen for it."""
        traits = Traits(self.model_type, self.template, frozenset(f"{self.special} {self.plain}".split()))
        tool = choose_tool_parser(traits, installed_vllm().tool_parsers).name
        reasoning = choose_reasoning_parser(traits, installed_vllm().reasoning_parsers).name
        return Speaker(tool or None, reasoning or None, tuple(self.special.split()), tuple(self.plain.split()))


def _json(arguments: str, names: str = "name arguments") -> str:
    name, key = names.split()
    return f'{{"{name}": "get_weather", "{key}": {arguments}}}'


def _pair(one: str, before: str = "", between: str = "", after: str = "") -> tuple[str, str]:
    """Make one and two calls of the one that asks for Paris."""
    both = one + between + one.replace("Paris", "Zürich")
    return before + one + after, before + both + after


def _kimi(*calls: str) -> str:
    made = (
        f"<|tool_call_begin|>functions.get_weather:{index}<|tool_call_argument_begin|>{call}<|tool_call_end|>"
        for index, call in enumerate(calls)
    )
    return "<|tool_calls_section_begin|>" + "".join(made) + "<|tool_calls_section_end|>"


_XML = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
_GLM = "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>"
_DSML = (
    '<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
)
_HERMES = f"<tool_call>\n{_json(PARIS)}\n</tool_call>"
_THINK = "<think> </think>"
_ARGS = "<tool_call> </tool_call> <arg_key> </arg_key> <arg_value> </arg_value>"
_THOUGHT = f"{THOUGHT}\n</think>\n\n"
_OPENED, _CLOSED = "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"
_SWITCH = "{% if enable_thinking %}{% endif %}"

FAMILIES = {
    "Apertus": Family(
        "apertus",
        "{{ tools }}<|tools_prefix|>",
        _pair('{"get_weather": {"city": "Paris"}}', "<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
        special="<|tools_prefix|> <|tools_suffix|>",
    ),
    "Apriel 1.5": Family(
        "llava",
        "{{ tools }} within <tool_call></tool_call> tags: <tool_calls>[",
        _pair(_json(PARIS), "<tool_calls>[", ", ", "]</tool_calls>"),
    ),
    "Bielik 3": Family(
        "llama", "{{ tools }}<tool_call>", _pair(_HERMES, between="\n"), plain="<tool_call> </tool_call>"
    ),
    "Command R+": Family(
        "cohere",
        '{{ tools }}[{"tool_name": x, "parameters": y}]',
        _pair(_json(PARIS, "tool_name parameters"), "Action:\n```json\n[\n    ", ",\n    ", "\n]\n```"),
    ),
    "DeepSeek V3.2": Family(
        "deepseek_v32",
        "{{ tools }}<｜DSML｜function_calls>{% if thinking %}<think>{% else %}</think>",
        _pair(_DSML, "\n\n<｜DSML｜function_calls>\n", after="</｜DSML｜function_calls>"),
        plain=f"{_THINK} ｜DSML｜",
        prompt="<｜Assistant｜><think>",
        thought=f"{THOUGHT}</think>",
        silent="<｜Assistant｜></think>",
    ),
    "DeepSeek V4": Family(
        "deepseek_v4",
        "{{ tools }}",
        _pair(_DSML, "\n\n<｜DSML｜tool_calls>\n", after="</｜DSML｜tool_calls>"),
        plain=f"{_THINK} ｜DSML｜",
        prompt="<｜Assistant｜><think>",
        thought=f"{THOUGHT}</think>",
        silent="<｜Assistant｜></think>",
    ),
    "Firefunction 2": Family(
        "llama", "{{ functions }} tools functools[", _pair(_json(PARIS), " functools[", ", ", "]")
    ),
    "GigaChat 3": Family(
        "deepseek_v3",
        "{{ tools }}'function call' + role_sep",
        (f"<|message_sep|>\n\nfunction call<|role_sep|>\n{_json(PARIS)}", ""),
        special="<|message_sep|> <|role_sep|>",
    ),
    "GigaChat 3.1": Family(
        "deepseek_v3",
        "{{ tools }}<|function_call|>",
        (f"<|function_call|>{_json(PARIS)}", ""),
        special="<|function_call|>",
    ),
    "GLM 4.7": Family(
        "glm4_moe_lite",
        "{{ tools }}<arg_key><think>" + _SWITCH,
        _pair(_GLM),
        plain=f"{_THINK} {_ARGS}",
        prompt="<|assistant|><think>",
        thought=f"{THOUGHT}</think>",
        silent="<|assistant|></think>",
    ),
    "Granite 4.1": Family(
        "granite", "{{ tools }}<tool_call></tool_call>", _pair(_HERMES, between="\n"), plain="<tool_call> </tool_call>"
    ),
    "Hermes 3": Family(
        "llama", "{{ tools }}<tool_call></tool_call>", _pair(_HERMES, between="\n"), plain="<tool_call> </tool_call>"
    ),
    "Hunyuan 3": Family(
        "hy_v3",
        "{{ tools }}",
        _pair(
            "<tool_call>get_weather<tool_sep>\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>\n",
            "<tool_calls>\n",
            after="</tool_calls>",
        ),
        plain=f"{_THINK} {_ARGS} <tool_calls> </tool_calls> <tool_sep>",
        silent="<｜hy_Assistant｜><think></think>",
    ),
    "Kimi K2": Family(
        "kimi_k2",
        "{{ tools }}<|tool_calls_section_begin|>",
        (_kimi(PARIS), _kimi(PARIS, ZURICH)),
        plain="<|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|> <|tool_call_end|> "
        "<|tool_call_argument_begin|>",
    ),
    "Laguna": Family(
        "laguna",
        "{{ tools }}<arg_key><think>" + _SWITCH,
        _pair("<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>\n"),
        plain=f"{_THINK} {_ARGS} <assistant>",
        prompt="<assistant>\n<think>",
        thought=f"\n{THOUGHT}\n</think>\n",
        silent="<assistant>\n</think>",
    ),
    "LFM 2": Family(
        "lfm2",
        "{{ tools }}<|tool_call_start|>",
        _pair('get_weather(city="Paris")', "<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
        special="<|tool_call_start|> <|tool_call_end|>",
    ),
    "LFM 2.5": Family(
        "lfm2_moe",
        "{{ tools }}<|tool_call_start|>{{ content.split('</think>')[-1] }}",
        _pair('get_weather(city="Paris")', "<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
        special="<|tool_call_start|> <|tool_call_end|>",
        plain=_THINK,
        prompt="<|im_start|>assistant\n",
        thought=f"<think>{THOUGHT}</think>",
        silent="<|im_start|>assistant\n",
    ),
    "Ling 3": Family(
        "bailing_hybrid",
        "{{ tools }}<arg_key><think>" + _SWITCH,
        _pair("<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"),
        plain=f"{_THINK} {_ARGS}",
        prompt="<role>ASSISTANT</role><think>",
        thought=f"{THOUGHT}\n</think>\n",
        silent="<role>ASSISTANT</role></think>",
    ),
    "MiMo-VL": Family(
        "qwen2_5_vl", "{{ tools }}<tool_call>", _pair(_HERMES, between="\n"), plain="<tool_call> </tool_call>"
    ),
    "MiniMax M1": Family(
        "minimax_m1",
        '{{ tools }}<tool_calls>\n{"name": x, "arguments": y}',
        _pair(_json(PARIS), "<tool_calls>\n", "\n", "\n</tool_calls>"),
    ),
    "MiniMax M2": Family(
        "minimax_m2",
        "{{ tools }}<minimax:tool_call><think>",
        _pair(
            '<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n',
            "<minimax:tool_call>\n",
            after="</minimax:tool_call>",
        ),
        plain=f"{_THINK} <minimax:tool_call> </minimax:tool_call>",
        prompt="]~b]ai\n<think>\n",
        thought=_THOUGHT,
    ),
    "MiniMax M3": Family(
        "minimax_m3",
        "{{ tools }}<mm:think>",
        _pair(
            ']<]minimax[>[<invoke name="get_weather">]<]minimax[>[<city>Paris]<]minimax[>[</city>'
            "]<]minimax[>[</invoke>\n",
            "]<]minimax[>[<tool_call>\n",
            after="]<]minimax[>[</tool_call>",
        ),
        plain="<mm:think> </mm:think> ]<]minimax[>[",
        prompt="]~b]ai\n",
        thought=f"<mm:think>{THOUGHT}</mm:think>",
    ),
    "MuseGlimmer": Family(
        "muse_glimmer",
        "{{ tools }}",
        _pair(
            '<atem:invoke name="get_weather">\n<atem:parameter name="city">Paris</atem:parameter>\n</atem:invoke>\n',
            " to=get_weather<|message|><atem:function_calls>\n",
            after="</atem:function_calls>",
        ),
        special="<|start|> <|message|> <|eom|> <|eot|>",
        prompt="<|start|>assistant",
        answer=" to=user<|message|>{}<|eot|>",
    ),
    "Nemotron 3": Family(
        "nemotron_h",
        "{{ tools }}<think><function=x><parameter=y>" + _SWITCH,
        _pair(_XML, between="\n"),
        plain=f"{_THINK} <tool_call> </tool_call>",
        prompt=_OPENED,
        thought=f"{THOUGHT}\n</think>\n",
        silent="<|im_start|>assistant\n<think></think>",
    ),
    "Nemotron Nano 2": Family(
        "nemotron_h",
        '{{ tools }}<TOOLCALL>[{"name": x, "arguments": y}]<think>',
        _pair(_json(PARIS), "<TOOLCALL>[", ", ", "]</TOOLCALL>"),
        plain=_THINK,
        prompt="<SPECIAL_11>Assistant\n<think>\n",
        thought=f"{THOUGHT}\n</think>\n",
        silent="<SPECIAL_11>Assistant\n<think></think>",
    ),
    "Qwen 3.5": Family(
        "qwen3_5",
        "{{ tools }}<think><function=x><parameter=y>" + _SWITCH,
        _pair(_XML, between="\n"),
        plain=f"{_THINK} <tool_call> </tool_call>",
        prompt=_OPENED,
        thought=_THOUGHT,
        silent=_CLOSED,
    ),
    "QwQ": Family(
        "qwen2",
        "{{ tools }}<tool_call><think>" + _SWITCH,
        _pair(_HERMES, between="\n"),
        plain=f"{_THINK} <tool_call> </tool_call>",
        prompt=_OPENED,
        thought=_THOUGHT,
        silent=_CLOSED,
    ),
    "Reka Edge": Family(
        "yasa2",
        "{{ tools }}<tool_call>{% endfor %}{% if add_generation_prompt %}<think>\n",
        _pair(f"<tool_call>\n{_json(PARIS)}</tool_call>"),
        plain="<tool_call> </tool_call>",
        prompt="assistant: <think>\n",
        thought=_THOUGHT,
        silent="assistant: <think>\n</think>\n\n",
    ),
    "Seed-OSS": Family(
        "seed_oss",
        "{{ tools }}<seed:think><seed:tool_call>",
        _pair(
            "<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n",
            "<seed:tool_call>\n",
            "</seed:tool_call>\n<seed:tool_call>\n",
            "</seed:tool_call>",
        ),
        plain="<seed:think> </seed:think> <seed:tool_call> </seed:tool_call>",
        prompt="<seed:bos>assistant\n",
        thought=f"<seed:think>{THOUGHT}</seed:think>\n",
    ),
    "SmolLM 3": Family(
        "smollm3",
        "{{ xml_tools }}<tool_call><think>" + _SWITCH,
        _pair(_HERMES, between="\n"),
        plain=f"{_THINK} <tool_call> </tool_call>",
        prompt="<|im_start|>assistant\n",
        thought=f"<think>\n{THOUGHT}\n</think>\n",
        silent="<|im_start|>assistant\n<think>\n\n</think>\n",
    ),
    "Spark 2.5": Family(
        "spark",
        "{{ tools }}<arg_key><think>" + _SWITCH,
        _pair(_GLM),
        plain=f"{_THINK} {_ARGS}",
        prompt="<Bot><think>",
        thought=f"{THOUGHT}</think>",
        silent="<Bot><think></think>",
    ),
    "StepFun 3.5": Family(
        "step3p5",
        "{{ tools }}<think>",
        _pair(_XML, between="\n"),
        plain=f"{_THINK} <tool_call> </tool_call>",
        prompt=_OPENED,
        thought=f"{THOUGHT}\n</think>\n",
    ),
}
"""By the models' names."""

MINICPM_5 = Family(
    "minicpm5",
    '{{ tools }}<function name="x"><param name="y"><think>' + _SWITCH,
    _pair('<function name="get_weather"><param name="city">Paris</param></function>'),
    plain=_THINK,
    prompt=_OPENED,
    thought=_THOUGHT,
    silent=_CLOSED,
)
"""Its calls are read, but vLLM's streaming parser sends their text as content, too."""

UNREAD = {
    "Apriel 1.6": (
        Family("llava", "{{ tools }}<tool_calls>[", prompt="Here are my reasoning steps:\n"),
        f"{THOUGHT}\n[BEGIN FINAL RESPONSE]\n{ANSWER}",
    ),
    "functionary 3.1": (
        Family("llama", "{{ tools }}<|python_tag|>", special="<|python_tag|>"),
        f"<function=get_weather>{PARIS}</function>",
    ),
    "functionary 3.2": (
        Family("llama", "{{ tools }}<|python_tag|>", special="<|python_tag|>"),
        f">>>get_weather\n{PARIS}",
    ),
}
"""Families whose thinking or calls no parser reads, and a reply: all of it is content."""

THINKING = {name: family for name, family in FAMILIES.items() if family.thought}
SWITCHED = {name: family for name, family in FAMILIES.items() if family.silent is not None}
SEVERAL = {name: family for name, family in FAMILIES.items() if family.calls[1]}


def every(families: dict[str, Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", families.values(), ids=families)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    importlib.import_module("vllama.worker.plain_parsers")


def said_by(family: Family, output: str, **fields: Any) -> list[Said]:
    """What comes of an output: whole, token by token, and in pieces of several tokens."""
    speaker = family.speaker
    cuts = range(5, len(speaker.encode(output)), 11)
    return [
        speaker.whole(output, **fields),
        speaker.streamed(output, **fields),
        speaker.streamed(output, cuts=cuts, **fields) if cuts else speaker.whole(output, **fields),
    ]


@every(FAMILIES)
def test_one_call_is_read(family: Family) -> None:
    off = family.silent is not None
    prompt = family.silent if off else family.prompt
    before = "" if off else family.thought
    for said in said_by(family, before + family.calls[0], prompt=prompt, think=not off):
        assert (said.content.strip(), said.calls) == ("", CALLS[:1])


@every(SEVERAL)
def test_two_calls_are_read(family: Family) -> None:
    off = family.silent is not None
    prompt = family.silent if off else family.prompt
    before = "" if off else family.thought
    for said in said_by(family, before + family.calls[1], prompt=prompt, think=not off):
        assert (said.content.strip(), said.calls) == ("", CALLS)


@every(FAMILIES)
def test_a_plain_answer_is_whole(family: Family) -> None:
    off = family.silent is not None
    prompt = family.silent if off else family.prompt
    output = ("" if off else family.thought) + family.answer.format(ANSWER)
    for said in said_by(family, output, prompt=prompt, think=not off):
        assert (said.content, said.calls) == (ANSWER, ())


@every(THINKING)
def test_thinking_is_told_from_the_answer(family: Family) -> None:
    for said in said_by(family, family.thought + family.answer.format(ANSWER), prompt=family.prompt):
        assert (said.thinking.strip(), said.content, said.calls) == (THOUGHT, ANSWER, ())


@every(THINKING)
def test_a_call_after_thinking_is_read(family: Family) -> None:
    for said in said_by(family, family.thought + family.calls[0], prompt=family.prompt):
        assert (said.thinking.strip(), said.content.strip(), said.calls) == (THOUGHT, "", CALLS[:1])


@every(THINKING)
def test_a_reply_that_ends_in_its_thinking_has_no_content(family: Family) -> None:
    cut = family.thought[: family.thought.index("Zürich") + 6]
    for said in said_by(family, cut, prompt=family.prompt):
        assert (said.thinking.strip(), said.content) == ("Paris or Zürich", "")


@pytest.mark.parametrize(("family", "output"), UNREAD.values(), ids=UNREAD)
def test_what_no_parser_reads_is_content(family: Family, output: str) -> None:
    for said in said_by(family, output, prompt=family.prompt):
        assert said == Said(output)


def test_text_before_calls_between_tags_is_kept() -> None:
    for name in ("Apriel 1.5", "MiniMax M1"):
        for said in said_by(FAMILIES[name], f"Let me look.\n{FAMILIES[name].calls[1]}"):
            assert (said.content.strip(), said.calls) == ("Let me look.", CALLS)


def test_tags_of_calls_in_an_answer_are_text() -> None:
    text = "Write <tool_calls>here</tool_calls> or <tool"
    for said in said_by(FAMILIES["MiniMax M1"], text):
        assert said == Said(text)


def test_calls_of_minicpm_are_read() -> None:
    speaker, call = MINICPM_5.speaker, MINICPM_5.thought + MINICPM_5.calls[0]
    assert speaker.whole(call, prompt=MINICPM_5.prompt) == Said("", f"{THOUGHT}\n", CALLS[:1])
    assert speaker.streamed(call, prompt=MINICPM_5.prompt).calls == CALLS[:1]
