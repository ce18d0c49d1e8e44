"""Choice of vLLM's tool and reasoning parsers for a model, from its files.

Ollama users never name a parser. The rules look for what the model was trained to write: the markers in its
chat template and vocabulary, and its architecture if models share markers. Parser names are candidates, best first,
because the installed vLLM may lack one (see vllama.installed.registry).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traits:
    """The facts about a model that the rules use.

    `tokens` are the tokens that the tokenizer has beyond its learned vocabulary. `is_rendered_in_code` means that the
    tokenizer needs no template.
    """

    model_type: str
    template: str
    tokens: frozenset[str]
    is_rendered_in_code: bool = False

    def says(self, *markers: str) -> bool:
        """Return whether any marker is in the template or is a token."""
        return any(marker in self.template or marker in self.tokens for marker in markers)


@dataclass(frozen=True, slots=True)
class ParserChoice:
    """The chosen parser ("" for none) and the marker or architecture that decided."""

    name: str = ""
    because: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """Parser candidates (best first) and the condition under which they apply.

    `needs` are tokens without which vLLM refuses to start with them.
    """

    candidates: tuple[str, ...]
    because: str
    applies: Callable[[Traits], bool]
    needs: tuple[str, ...] = ()


def choose_tool_parser(traits: Traits, installed: Collection[str]) -> ParserChoice:
    """Choose the parser for the model's tool calls; none if its template does not accept tools."""
    in_code = traits.model_type in _TEMPLATES_IN_CODE or (traits.is_rendered_in_code and not traits.template)
    if not ("tools" in traits.template or in_code):
        return ParserChoice()
    return _first(_TOOL_RULES, traits, installed)


def choose_reasoning_parser(traits: Traits, installed: Collection[str]) -> ParserChoice:
    """Choose the parser that separates the model's thinking; none if it does not think."""
    return _first(_REASONING_RULES, traits, installed)


def _first(rules: Iterable[Rule], traits: Traits, installed: Collection[str]) -> ParserChoice:
    for rule in rules:
        if rule.applies(traits):
            name = next((name for name in rule.candidates if name in installed), "")
            if name and traits.tokens.issuperset(rule.needs):
                return ParserChoice(name, rule.because)
            return ParserChoice()  # this vLLM cannot parse the model's format
    return ParserChoice()


def _marker(*markers: str) -> Callable[[Traits], bool]:
    return lambda traits: traits.says(*markers)


def _type(*prefixes: str) -> Callable[[Traits], bool]:
    return lambda traits: traits.model_type.startswith(prefixes)


def _says_all(*markers: str) -> Callable[[Traits], bool]:
    return lambda traits: all(marker in traits.template for marker in markers)


def _both(first: Callable[[Traits], bool], second: Callable[[Traits], bool]) -> Callable[[Traits], bool]:
    return lambda traits: first(traits) and second(traits)


# vLLM renders these without a Jinja template.
_TEMPLATES_IN_CODE = frozenset({"gpt_oss", "deepseek_v32", "deepseek_v4", "deepseek_v41", "kimi_k3"})

_DEEPSEEK_CALLS = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_THINK = ("<think>", "</think>")

_BARE_CALL = re.compile(
    r"""\{\s*\\?["'](?:tool_)?name\\?["']\s*:.{,200}?["'](?:arguments|parameters)\\?["']\s*:""", re.DOTALL
)


def _writes_calls_as_bare_json(traits: Traits) -> bool:
    """Return whether the template writes earlier calls as JSON objects with name and arguments."""
    return _BARE_CALL.search(traits.template) is not None


def _writes_calls_as_gigachat(traits: Traits) -> bool:
    """Return whether the template marks calls as GigaChat 3 or 3.1 do."""
    return traits.says("<|function_call|>") or _says_all("function call", "role_sep")(traits)


def _reply_part(template: str) -> str:
    """Return the part of a template after the last message, or at least its beginning."""
    *_, after = re.split(r"add_generation_prompt|\{%-?\s*endfor", template)
    return after


def _opens_thinking_in_plain_words(traits: Traits) -> bool:
    """Return whether the template begins the reply with `<think>` although it is not a token of the model."""
    after = _reply_part(traits.template)
    return "<think>" in after and "</think>" not in after and not traits.tokens.issuperset(_THINK)


def _only_reads_thinking(traits: Traits) -> bool:
    """Return whether thinking occurs only in the history, as with Qwen 3's instruct models, which never think."""
    return traits.model_type.startswith("qwen3") and "<think>" not in _reply_part(traits.template)


# From specific to general: many families write `<tool_call>` in different ways.
_TOOL_RULES = (
    Rule(("openai",), "architecture gpt_oss", _type("gpt_oss")),
    Rule(("deepseek_v41",), "architecture deepseek_v41", _type("deepseek_v41")),
    Rule(("deepseek_v4",), "architecture deepseek_v4", _type("deepseek_v4")),
    Rule(("kimi_k3",), "architecture kimi_k3", _type("kimi_k3")),
    Rule(("hy_v4",), "architecture hy_v4", _type("hy_v4")),
    Rule(("hy_v3",), "architecture hy_v3", _type("hy_v3")),
    Rule(("minimax_m3",), "architecture minimax_m3", _type("minimax_m3")),
    Rule(("step3p5",), "architecture step3p5", _type("step3p5")),
    Rule(("ling3", "glm47"), "architecture bailing_hybrid", _both(_marker("<arg_key>"), _type("bailing_"))),
    Rule(("poolside_v1",), "architecture laguna", _both(_marker("<arg_key>"), _type("laguna"))),
    Rule(("muse_glimmer",), "architecture muse_glimmer", _type("muse_glimmer")),
    Rule(("gigachat3",), "<|function_call|>", _writes_calls_as_gigachat),
    Rule(("minicpm5",), '<function name="…"><param name="…">', _says_all('<function name="', '<param name="')),
    Rule(("bare_json",), "functools[", _both(_marker("functools["), lambda traits: not traits.says("<|tool|>"))),
    Rule(("mimo",), "architecture mimo", _both(_marker("<tool_call>"), _type("mimo"))),
    Rule(("longcat",), "<longcat_tool_call>", _marker("<longcat_tool_call>")),
    Rule(("dots",), "<dots_function_call>", _marker("<dots_function_call>")),
    Rule(("k2_horizon",), "<ifm|tool_call>", _marker("<ifm|tool_call>")),
    Rule(("deepseek_v32",), "<｜DSML｜", _both(_marker("｜DSML｜"), _type("deepseek"))),
    Rule(
        ("deepseek_v3",),
        "<｜tool▁calls▁begin｜> with ```json",
        _both(_marker("<｜tool▁calls▁begin｜>"), lambda traits: "```json" in traits.template),
        needs=_DEEPSEEK_CALLS,
    ),
    Rule(("deepseek_v31",), "<｜tool▁calls▁begin｜>", _marker("<｜tool▁calls▁begin｜>"), needs=_DEEPSEEK_CALLS),
    Rule(("kimi_k2",), "<|tool_calls_section_begin|>", _marker("<|tool_calls_section_begin|>")),
    Rule(("llama4_pythonic",), "architecture llama4", _type("llama4")),
    Rule(
        ("llama3_json",),
        "<|python_tag|>",
        _both(_marker("<|python_tag|>"), _type("llama", "mllama")),
        needs=("<|python_tag|>",),
    ),
    Rule(("mistral",), "[TOOL_CALLS]", _marker("[TOOL_CALLS]"), needs=("[TOOL_CALLS]",)),
    Rule(
        ("glm47", "glm45"), "architecture glm4_moe_lite", _both(_marker("<arg_key>"), _type("glm4_moe_lite", "glm47"))
    ),
    Rule(("glm45",), "<arg_key>", _marker("<arg_key>")),
    Rule(("minimax_m2",), "<minimax:tool_call>", _marker("<minimax:tool_call>")),
    Rule(("seed_oss",), "<seed:tool_call>", _marker("<seed:tool_call>")),
    Rule(
        ("qwen3_coder", "qwen3_xml"),
        "<function=…><parameter=…>",
        _says_all("<function=", "<parameter="),
    ),
    Rule(("functiongemma",), "<start_function_call>", _marker("<start_function_call>")),
    Rule(("gemma4",), "<|tool_call>", _marker("<|tool_call>")),
    Rule(
        ("granite4", "hermes"),
        "architecture granite with </tool_call>",
        _both(_marker("</tool_call>"), _type("granite")),
    ),
    Rule(("granite",), "architecture granite", _type("granite")),
    Rule(("phi4_mini_json",), "<|tool|>", _both(_marker("<|tool|>"), _type("phi"))),
    Rule(
        ("lfm2",),
        "<|tool_call_start|>",
        _marker("<|tool_call_start|>"),
        needs=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    Rule(("olmo3",), "<function_calls>", _both(_marker("<function_calls>"), _type("olmo"))),
    Rule(("apertus",), "<|tools_prefix|>", _marker("<|tools_prefix|>")),
    Rule(("hunyuan_a13b",), "architecture hunyuan", _type("hunyuan")),
    Rule(("ernie45",), "architecture ernie4_5", _type("ernie4_5")),
    Rule(("internlm",), "<|plugin|>", _marker("<|plugin|>")),
    Rule(("step3",), "<｜tool_calls_begin｜>", _marker("<｜tool_calls_begin｜>")),
    Rule(("cohere_command3",), "<|START_ACTION|>", _marker("<|START_ACTION|>")),
    Rule(("jamba",), "architecture jamba", _type("jamba"), needs=("<tool_calls>", "</tool_calls>")),
    Rule(("bare_json",), "<tool_calls>[", _marker("<tool_calls>[")),
    Rule(("hermes",), "<tool_call>", _marker("<tool_call>")),
    Rule(("bare_json",), '{"name": …, "arguments": …}', _writes_calls_as_bare_json),
)

_REASONING_RULES = (
    Rule(("openai_gptoss",), "architecture gpt_oss", _type("gpt_oss")),
    Rule(("deepseek_v41",), "architecture deepseek_v41", _type("deepseek_v41")),
    Rule(("deepseek_v4",), "architecture deepseek_v4", _type("deepseek_v4")),
    Rule(("kimi_k3",), "architecture kimi_k3", _type("kimi_k3")),
    Rule(("hy_v4",), "architecture hy_v4", _type("hy_v4")),
    Rule(("hy_v3",), "architecture hy_v3", _type("hy_v3")),
    Rule(("minimax_m3",), "architecture minimax_m3", _type("minimax_m3")),
    Rule(("step3p5",), "architecture step3p5", _type("step3p5"), needs=_THINK),
    Rule(("ling3", "glm47"), "architecture bailing_hybrid", _both(_marker("<arg_key>"), _type("bailing_"))),
    Rule(("poolside_v1",), "architecture laguna", _both(_marker("<think>"), _type("laguna")), needs=("<assistant>",)),
    Rule(("muse_glimmer",), "architecture muse_glimmer", _type("muse_glimmer")),
    Rule(("mimo",), "architecture mimo", _both(_marker("<think>"), _type("mimo"))),
    # Models that never think have these tokens too, but their templates do not mention them.
    Rule(
        ("mistral",),
        "[THINK]",
        lambda traits: "[THINK]" in traits.template,
        needs=("[THINK]", "[/THINK]", "[TOOL_CALLS]"),
    ),
    Rule(("gemma4",), "<|channel>", _both(_marker("<|channel>"), _type("gemma"))),
    Rule(("seed_oss",), "<seed:think>", _marker("<seed:think>")),
    Rule(("glm47", "glm45"), "architecture glm4_moe_lite", _both(_marker("<think>"), _type("glm4_moe_lite", "glm47"))),
    Rule(("glm45",), "architecture glm4_moe", _both(_marker("<think>"), _type("glm4"))),
    Rule(("minimax_m2",), "architecture minimax_m2", _both(_marker("<think>"), _type("minimax"))),
    Rule(("kimi_k2",), "architecture kimi_k2", _both(_marker("<think>"), _type("kimi"))),
    Rule(("step3",), "architecture step3", _both(_marker("<think>"), _type("step3")), needs=("</think>",)),
    Rule(("ernie45",), "architecture ernie4_5", _both(_marker("<think>"), _type("ernie4_5")), needs=_THINK),
    Rule(("hunyuan_a13b",), "architecture hunyuan", _both(_marker("<think>"), _type("hunyuan"))),
    Rule(("olmo3",), "architecture olmo3", _both(_marker("<think>"), _type("olmo3"))),
    Rule(("nemotron_v3",), "architecture nemotron_h", _both(_marker("<think>"), _type("nemotron_h"))),
    Rule(("granite",), "Here is my thought process", _marker("Here is my thought process")),
    Rule(
        ("deepseek_v3",),
        "`thinking` in a DeepSeek template",
        _both(_marker("</think>"), lambda t: t.model_type.startswith("deepseek") and "thinking" in t.template),
        needs=_THINK,
    ),
    Rule(("plain_think",), "<think>", _opens_thinking_in_plain_words),
    Rule(("qwen3",), "enable_thinking", _both(_marker("<think>"), lambda traits: "enable_thinking" in traits.template)),
    Rule(
        ("deepseek_r1",),
        "</think>",
        _both(lambda t: "</think>" in t.template or "<think>" in t.template, lambda t: not _only_reads_thinking(t)),
        needs=_THINK,
    ),
)
