"""What the families write when they call tools, each in its own documented format, and what clients get of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_output import Said, Speaker

from vllama.installed.registry import installed_vllm
from vllama.store import parsers

# vLLM is imported (its imports warn), but no engine started.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

Calls = tuple[tuple[str, dict[str, Any]], ...]

PARIS = '{"city": "Paris", "days": 2}'
ZURICH = '{"city": "Zürich"}'
BOTH: Calls = (("get_weather", {"city": "Paris", "days": 2}), ("get_weather", {"city": "Zürich"}))
CITIES: Calls = (("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Zürich"}))
DEEPSEEK_TOKENS = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)


@dataclass(frozen=True, slots=True)
class Family:
    """A family's speaker, and how it writes the calls of PARIS and of both."""

    speaker: Speaker
    one: str
    two: str
    prefix: str = ""  # what stands before text
    calls: Calls = BOTH


def _json(arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "get_weather", "{key}": {arguments}}}'


def _hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{_json(call)}\n</tool_call>" for call in calls)


def _qwen3_coder(*calls: dict[str, str]) -> str:
    return "\n".join(
        "<tool_call>\n<function=get_weather>\n"
        + "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in call.items())
        + "</function>\n</tool_call>"
        for call in calls
    )


def _deepseek_v3(*calls: str) -> str:
    made = (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{call}\n```<｜tool▁call▁end｜>"
        for call in calls
    )
    return "<｜tool▁calls▁begin｜>" + "\n".join(made) + "<｜tool▁calls▁end｜>"


def _deepseek_v31(*calls: str) -> str:
    made = (f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{call}<｜tool▁call▁end｜>" for call in calls)
    return "<｜tool▁calls▁begin｜>" + "".join(made) + "<｜tool▁calls▁end｜>"


def _glm(*calls: dict[str, str]) -> str:
    return "\n".join(
        "<tool_call>get_weather\n"
        + "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in call.items())
        + "</tool_call>"
        for call in calls
    )


def _harmony(call: str) -> str:
    return f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{call}<|call|>"


_HERMES_TOKENS = ("<tool_call>", "</tool_call>")
_GLM_TOKENS = (*_HERMES_TOKENS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<think>", "</think>")
_GEMMA4_TOKENS = ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>")
_FUNCTIONGEMMA_TOKENS = ("<start_function_call>", "<end_function_call>", "<escape>")

FAMILIES = {
    "Hermes 2 Pro": Family(Speaker(tool="hermes", special=("<|im_end|>",)), _hermes(PARIS), _hermes(PARIS, ZURICH)),
    "Qwen 2.5 and 3": Family(
        Speaker(tool="hermes", special=("<|im_end|>",), plain=_HERMES_TOKENS), _hermes(PARIS), _hermes(PARIS, ZURICH)
    ),
    "Qwen3-Coder": Family(
        Speaker(tool="qwen3_coder", plain=_HERMES_TOKENS),
        _qwen3_coder({"city": "Paris", "days": "2"}),
        _qwen3_coder({"city": "Paris", "days": "2"}, {"city": "Zürich"}),
    ),
    "Llama 3.1": Family(
        Speaker(tool="llama3_json", special=("<|python_tag|>",)),
        _json(PARIS, "parameters"),
        f"{_json(PARIS, 'parameters')}; {_json(ZURICH, 'parameters')}",
    ),
    "Llama 3.2 with its tag": Family(
        Speaker(tool="llama3_json", special=("<|python_tag|>",)),
        f"<|python_tag|>{_json(PARIS, 'parameters')}",
        f"<|python_tag|>{_json(PARIS, 'parameters')}; {_json(ZURICH, 'parameters')}",
    ),
    "Mistral 7B v0.3": Family(
        Speaker(tool="mistral", special=("[TOOL_CALLS]",)),
        f"[TOOL_CALLS] [{_json(PARIS)}]",
        f"[TOOL_CALLS] [{_json(PARIS)}, {_json(ZURICH)}]",
    ),
    "Mistral Small 3.2": Family(
        Speaker(tool="mistral", special=("[TOOL_CALLS]", "[ARGS]")),
        f"[TOOL_CALLS]get_weather[ARGS]{PARIS}",
        f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]get_weather[ARGS]{ZURICH}",
    ),
    "FunctionGemma": Family(
        Speaker(tool="functiongemma", special=_FUNCTIONGEMMA_TOKENS),
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>"
        "<start_function_call>call:get_weather{city:<escape>Zürich<escape>}<end_function_call>",
        calls=CITIES,
    ),
    "Gemma 4": Family(
        Speaker(tool="gemma4", special=_GEMMA4_TOKENS),
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>',
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>'
        '<|tool_call>call:get_weather{city:<|"|>Zürich<|"|>}<tool_call|>',
    ),
    "gpt-oss": Family(
        Speaker(tool="openai", reasoning="openai_gptoss", harmony=True),
        _harmony(PARIS),
        f"{_harmony(PARIS)}<|start|>assistant{_harmony(ZURICH)}",
        prefix="<|channel|>commentary<|message|>",
    ),
    "DeepSeek V3 and R1": Family(
        Speaker(tool="deepseek_v3", plain=DEEPSEEK_TOKENS), _deepseek_v3(PARIS), _deepseek_v3(PARIS, ZURICH)
    ),
    "DeepSeek V3.1": Family(
        Speaker(tool="deepseek_v31", plain=DEEPSEEK_TOKENS), _deepseek_v31(PARIS), _deepseek_v31(PARIS, ZURICH)
    ),
    "Granite 3.0": Family(
        Speaker(tool="granite", special=("<|tool_call|>",)),
        f"<|tool_call|>[{_json(PARIS)}]",
        f"<|tool_call|>[{_json(PARIS)}, {_json(ZURICH)}]",
    ),
    "Granite 3.2": Family(
        Speaker(tool="granite", reasoning="granite", special=("<|tool_call|>",)),
        f"<|tool_call|>[{_json(PARIS)}]",
        f"<|tool_call|>[{_json(PARIS)}, {_json(ZURICH)}]",
    ),
    "Granite 4": Family(Speaker(tool="granite4", plain=_HERMES_TOKENS), _hermes(PARIS), _hermes(PARIS, ZURICH)),
    "Phi-4-mini": Family(
        Speaker(tool="phi4_mini_json", special=("<|tool_call|>", "<|tool|>")),
        f"functools[{_json(PARIS)}]",
        f"functools[{_json(PARIS)}, {_json(ZURICH)}]",
    ),
    "GLM 4.5": Family(
        Speaker(tool="glm45", reasoning="glm45", plain=_GLM_TOKENS),
        _glm({"city": "Paris", "days": "2"}),
        _glm({"city": "Paris", "days": "2"}, {"city": "Zürich"}),
    ),
}

_TAGGED_LIST = ("<tool_calls>", "</tool_calls>")
_STEP3_TOKENS = (
    "<｜tool_calls_begin｜>",
    "<｜tool_calls_end｜>",
    "<｜tool_call_begin｜>",
    "<｜tool_call_end｜>",
    "<｜tool_sep｜>",
)
_KIMI_TOKENS = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_end|>",
    "<|tool_call_argument_begin|>",
)
_MINIMAX_TOKENS = ("<minimax:tool_call>", "</minimax:tool_call>")
_SEED_TOKENS = ("<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>")
_APERTUS_TOKENS = ("<|tools_prefix|>", "<|tools_suffix|>")
_LFM2_TOKENS = ("<|tool_call_start|>", "<|tool_call_end|>")


def _kimi(*calls: str) -> str:
    made = (
        f"<|tool_call_begin|>functions.get_weather:{number}<|tool_call_argument_begin|>{call}<|tool_call_end|>"
        for number, call in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{''.join(made)}<|tool_calls_section_end|>"


def _invoke(opening: str, closing: str, *calls: dict[str, str], quote: str = '"') -> str:
    made = (
        f"<invoke name={quote}get_weather{quote}>"
        + "".join(f"<parameter name={quote}{key}{quote}>{value}</parameter>" for key, value in call.items())
        + "</invoke>"
        for call in calls
    )
    return "\n".join((opening, *made, closing))


def _mimo(*cities: str) -> str:
    return "\n".join(
        f"<tool_call>\n<function=get_weather>\n<parameter=city>{city}</parameter>\n</function>\n</tool_call>"
        for city in cities
    )


def _step3(*cities: str) -> str:
    made = (
        f'<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">'
        f'<steptml:parameter name="city">{city}</steptml:parameter></steptml:invoke><｜tool_call_end｜>'
        for city in cities
    )
    return f"<｜tool_calls_begin｜>{''.join(made)}<｜tool_calls_end｜>"


def _dsml(*calls: str) -> str:
    made = (
        f'<｜DSML｜invoke name="get_weather">\n{"".join(call)}</｜DSML｜invoke>\n'
        for call in (
            f'<｜DSML｜parameter name="city" string="true">{city}</｜DSML｜parameter>\n' + days
            for city, days in (
                ("Paris", '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'),
                ("Zürich", ""),
            )[: len(calls)]
        )
    )
    return f"<｜DSML｜function_calls>\n{''.join(made)}</｜DSML｜function_calls>"


MORE_FAMILIES = {
    "LFM2": Family(
        Speaker(tool="lfm2", special=_LFM2_TOKENS),
        '<|tool_call_start|>[get_weather(city="Paris", days=2)]<|tool_call_end|>',
        '<|tool_call_start|>[get_weather(city="Paris", days=2), get_weather(city="Zürich")]<|tool_call_end|>',
    ),
    "Llama 4": Family(
        Speaker(tool="llama4_pythonic"),
        '[get_weather(city="Paris", days=2)]',
        '[get_weather(city="Paris", days=2), get_weather(city="Zürich")]',
    ),
    "Olmo 3": Family(
        Speaker(tool="olmo3"),
        '<function_calls>\nget_weather(city="Paris", days=2)\n</function_calls>',
        '<function_calls>\nget_weather(city="Paris", days=2)\nget_weather(city="Zürich")\n</function_calls>',
    ),
    "Kimi K2": Family(Speaker(tool="kimi_k2", plain=_KIMI_TOKENS), _kimi(PARIS), _kimi(PARIS, ZURICH)),
    "MiniMax M2": Family(
        Speaker(tool="minimax_m2", plain=_MINIMAX_TOKENS),
        _invoke(*_MINIMAX_TOKENS, {"city": "Paris", "days": "2"}),
        _invoke(*_MINIMAX_TOKENS, {"city": "Paris", "days": "2"}, {"city": "Zürich"}),
    ),
    "dots": Family(
        Speaker(tool="dots"),
        _invoke("<dots_function_call>", "</dots_function_call>", {"city": "Paris", "days": "2"}),
        _invoke("<dots_function_call>", "</dots_function_call>", {"city": "Paris", "days": "2"}, {"city": "Zürich"}),
    ),
    "Seed OSS": Family(
        Speaker(tool="seed_oss", plain=_SEED_TOKENS),
        _qwen3_coder({"city": "Paris", "days": "2"}).replace("tool_call>", "seed:tool_call>"),
        _qwen3_coder({"city": "Paris", "days": "2"}, {"city": "Zürich"}).replace("tool_call>", "seed:tool_call>"),
    ),
    "DeepSeek V3.2": Family(Speaker(tool="deepseek_v32"), _dsml(PARIS), _dsml(PARIS, ZURICH)),
    "DeepSeek V4": Family(
        Speaker(tool="deepseek_v4"),
        _dsml(PARIS).replace("function_calls", "tool_calls"),
        _dsml(PARIS, ZURICH).replace("function_calls", "tool_calls"),
    ),
    "Step 3": Family(
        Speaker(tool="step3", plain=_STEP3_TOKENS), _step3("Paris"), _step3("Paris", "Zürich"), calls=CITIES
    ),
    "ERNIE 4.5": Family(Speaker(tool="ernie45", plain=_HERMES_TOKENS), _hermes(PARIS), _hermes(PARIS, ZURICH)),
    "MiMo": Family(
        Speaker(tool="mimo", plain=_HERMES_TOKENS),
        _mimo("Paris"),
        _mimo("Paris", "Zürich"),
        calls=CITIES,
    ),
    "LongCat": Family(
        Speaker(tool="longcat"),
        _hermes(PARIS).replace("tool_call>", "longcat_tool_call>"),
        _hermes(PARIS, ZURICH).replace("tool_call>", "longcat_tool_call>"),
    ),
    "Jamba": Family(
        Speaker(tool="jamba", special=_TAGGED_LIST),
        f"<tool_calls>[{_json(PARIS)}]</tool_calls>",
        f"<tool_calls>[{_json(PARIS)}, {_json(ZURICH)}]</tool_calls>",
    ),
    "Hunyuan": Family(
        Speaker(tool="hunyuan_a13b", plain=_TAGGED_LIST),
        f"<tool_calls>[{_json(PARIS)}]</tool_calls>",
        f"<tool_calls>[{_json(PARIS)}, {_json(ZURICH)}]</tool_calls>",
    ),
    "Apertus": Family(
        Speaker(tool="apertus", special=_APERTUS_TOKENS),
        f'<|tools_prefix|>[{{"get_weather": {PARIS}}}]<|tools_suffix|>',
        f'<|tools_prefix|>[{{"get_weather": {PARIS}}}, {{"get_weather": {ZURICH}}}]<|tools_suffix|>',
    ),
    "bare JSON": Family(Speaker(tool="bare_json"), _json(PARIS), f"{_json(PARIS)}\n{_json(ZURICH)}"),
    "a list of bare JSON": Family(Speaker(tool="bare_json"), f"[{_json(PARIS)}]", f"[{_json(PARIS)}, {_json(ZURICH)}]"),
    "Hermes with thinking in plain words": Family(
        Speaker(tool="hermes", reasoning="plain_think"), _hermes(PARIS), _hermes(PARIS, ZURICH)
    ),
    "Qwen 3": Family(
        Speaker(tool="hermes", reasoning="qwen3", plain=(*_HERMES_TOKENS, "<think>", "</think>")),
        _hermes(PARIS),
        _hermes(PARIS, ZURICH),
    ),
    "DeepSeek R1 with calls as Hermes writes them": Family(
        Speaker(tool="hermes", reasoning="deepseek_r1", plain=(*_HERMES_TOKENS, "<think>", "</think>")),
        _hermes(PARIS),
        _hermes(PARIS, ZURICH),
    ),
}
"""Families of which only the calls of a stream are tried."""

AT_THE_END = {"gpt-oss"}
"""It ends with its first call."""

by_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
by_each_family = pytest.mark.parametrize(
    "family",
    [family for name, family in (FAMILIES | MORE_FAMILIES).items() if name not in AT_THE_END],
    ids=[name for name in FAMILIES | MORE_FAMILIES if name not in AT_THE_END],
)


@by_family
def test_a_call_comes_with_its_arguments_as_an_object(family: Family) -> None:
    expected = Said("", calls=family.calls[:1])
    assert family.speaker.whole(family.one, think=False) == expected
    assert family.speaker.streamed(family.one, think=False) == expected


@by_family
def test_text_before_several_calls_is_kept(family: Family) -> None:
    text = f"{family.prefix}Let me look.\n"
    if family.prefix:
        text += "<|end|><|start|>assistant"
    for said in (
        family.speaker.whole(text + family.two, think=False),
        family.speaker.streamed(text + family.two, think=False),
    ):
        assert said.calls == family.calls
        assert said.content.strip() == "Let me look."


@by_family
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_it_does_not_matter_how_many_tokens_come_at_once(family: Family, data: st.DataObject) -> None:
    count = len(family.speaker.encode(family.two))
    cuts = data.draw(st.sets(st.integers(1, count - 1), min_size=1, max_size=12))
    said = family.speaker.streamed(family.two, think=False, cuts=cuts)
    assert said.calls == family.calls
    assert not said.content.strip()


@by_each_family
def test_each_call_of_a_stream_comes_when_it_is_closed(family: Family) -> None:
    steps = family.speaker.step_by_step(family.two, think=False)
    called = [(text, call) for text, piece in steps for call in piece.calls]

    assert [(call.name, call.arguments) for _, call in called] == list(family.calls)
    assert [call.index for _, call in called] == [0, 1]
    first = called[0][0]
    assert "Paris" in first
    assert "Zürich" not in first
    assert not any(piece.content.strip() for _, piece in steps)


@by_each_family
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_calls_of_a_stream_are_those_of_the_whole_reply(family: Family, data: st.DataObject) -> None:
    count = len(family.speaker.encode(family.two))
    cuts = data.draw(st.sets(st.integers(1, count - 1), min_size=1, max_size=12))
    whole = family.speaker.whole(family.two, think=False)
    streamed = family.speaker.streamed(family.two, think=False, cuts=cuts)
    assert streamed.calls == whole.calls == family.calls
    assert not streamed.content.strip()
    assert not whole.content


LOSES = {"deepseek_v3", "deepseek_v31", "ernie45"}
"""vLLM's parsers of these drop a call that breaks off after another."""


@by_each_family
def test_what_breaks_off_after_a_call_costs_neither_the_call_nor_the_text(family: Family) -> None:
    output = family.two[: family.two.index("Zürich") + 3]
    said = family.speaker.streamed(output, think=False)

    assert said.calls[:1] == family.calls[:1]
    if len(said.calls) > 1:  # vLLM closes formats other than JSON by itself
        assert said.calls[1][1] in ({"city": "Zür"}, {})
    else:
        assert "Zür" in said.content or family.speaker.tool in LOSES


@by_family
def test_a_call_that_was_cut_off_is_no_call_and_its_text_is_not_lost(family: Family) -> None:
    output = family.one[: family.one.index("Paris") + 3]
    for said in (family.speaker.whole(output, think=False), family.speaker.streamed(output, think=False)):
        if said.calls:  # what has arrived of the arguments; vLLM closes formats other than JSON by itself
            assert said.calls[0][0] == "get_weather"
            assert said.calls[0][1] in ({"city": "Par"}, {})
        else:
            assert "Par" in said.content


@by_family
def test_a_reply_that_only_talks_of_calls_is_text(family: Family) -> None:
    text = 'Write {"city": "Zürich"} or [1, 2] <b>here</b>.'
    output = f"<|channel|>final<|message|>{text}" if family.prefix else text
    assert family.speaker.whole(output, think=False) == Said(text)
    assert family.speaker.streamed(output, think=False) == Said(text)


@by_family
def test_without_tools_in_the_request_nothing_is_taken_for_a_call(family: Family) -> None:
    text = "Nothing to call."
    output = f"<|channel|>final<|message|>{text}" if family.prefix else text
    assert family.speaker.whole(output, tools=False, think=False) == Said(text)
    assert family.speaker.streamed(output, tools=False, think=False) == Said(text)


CHOSEN = sorted(
    {name for rule in parsers._TOOL_RULES for name in rule.candidates} & installed_vllm().tool_parsers - {"openai"}
)
_TOKENS = (
    *_GLM_TOKENS,
    *_GEMMA4_TOKENS,
    *DEEPSEEK_TOKENS,
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_end|>",
    "<|tool_call_argument_begin|>",
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    "<seed:tool_call>",
    "</seed:tool_call>",
    "<seed:think>",
    "</seed:think>",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "<|START_THINKING|>",
    "<|END_THINKING|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<tool_calls>",
    "</tool_calls>",
    "<response>",
    "</response>",
    "<|plugin|>",
    "<|action_start|>",
    "<|action_end|>",
    "<|tools_prefix|>",
    "<|tools_suffix|>",
    "｜DSML｜",
)


NOT_TOLD = {"HYV3ToolParser", "HYV4ToolParser", "Internlm2ToolParser", "K2HorizonToolParser", "KimiK3ToolParser"}
NOT_TOLD |= {"MinimaxM3ToolParser", "CohereCommand3ToolParser", "GigaChat3ToolParser", "Ling3ToolParser"}
NOT_TOLD |= {"MiniCPM5XMLToolParser", "MuseGlimmerToolParser", "PoolsideV1ToolParser"}
"""The calls of these come at the end."""


@pytest.mark.parametrize("name", CHOSEN)
def test_each_parser_that_may_be_chosen_tells_where_calls_end_or_is_known_not_to(name: str) -> None:
    from vllm.parser import ParserManager

    from vllama.worker.call_formats import call_format

    parsers = ParserManager.get_parser(
        tool_parser_name=name, reasoning_parser_name=None, enable_auto_tools=True, model_name="model", is_harmony=False
    )
    found = parsers.tool_parser_cls
    assert (call_format(found) is None) == (found.__name__ in NOT_TOLD)


@pytest.mark.parametrize("name", CHOSEN)
def test_no_parser_that_may_be_chosen_loses_a_plain_answer(name: str) -> None:
    speaker = Speaker(tool=name, plain=_TOKENS)
    text = "Zürich is in Switzerland.\n\nIt has {lakes}."
    assert speaker.whole(text, think=False) == Said(text)
    assert speaker.streamed(text, think=False) == Said(text)
