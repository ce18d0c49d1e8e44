"""Which parser is chosen for which family, from excerpts of what their template and vocabulary hold."""

from __future__ import annotations

import pytest

from vllama.installed.registry import OWN_REASONING_PARSERS, OWN_TOOL_PARSERS
from vllama.ollama.templates import in_jinja
from vllama.store import parsers
from vllama.store.parsers import ParserChoice, Rule, Traits, choose_reasoning_parser, choose_tool_parser

_TOOL_SINCE_0_26 = """
apertus cohere_command3 cohere_command4 deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4 ernie45 functiongemma gemma4
gigachat3 glm45 glm47 granite granite-20b-fc granite4 hermes hunyuan_a13b hy_v3 inkling internlm jamba kimi_k2 lfm2
llama3_json llama4_json llama4_pythonic longcat mimo minicpm5 minimax_m2 minimax_m3 mistral olmo3 openai phi4_mini_json
poolside_v1 pythonic qwen3_coder qwen3_xml seed_oss step3 step3p5 xlam
"""
_TOOL_SINCE_0_32 = "deepseek_v41 dots hf hy_v4 k2_horizon kimi_k3 ling3 muse_glimmer plamo3 qwen3_json"
_REASONING_SINCE_0_26 = """
cohere_command3 cohere_command4 deepseek_r1 deepseek_v3 deepseek_v4 ernie45 gemma4 glm45 glm47 granite holo2
hunyuan_a13b hy_v3 inkling kimi_k2 mimo minimax_m2 minimax_m2_append_think minimax_m3 mistral nemotron_v3 olmo3
openai_gptoss poolside_v1 qwen3 seed_oss step3 step3p5
"""
_REASONING_SINCE_0_32 = """
deepseek_v41 granite_thinking_parser hf hy_v4 k2_horizon kimi_k3 ling3 minicpmv muse_glimmer plamo3
"""
VLLM_0_26_TOOL = frozenset(_TOOL_SINCE_0_26.split())
VLLM_0_32_TOOL = VLLM_0_26_TOOL | set(_TOOL_SINCE_0_32.split())
VLLM_0_26_REASONING = frozenset(_REASONING_SINCE_0_26.split())
VLLM_0_32_REASONING = VLLM_0_26_REASONING | set(_REASONING_SINCE_0_32.split())

_HERMES = "{%- if tools %}For each function call, return a json object within <tool_call></tool_call> XML tags:"
_QWEN3 = (
    _HERMES + "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
)
_QWEN3_CODER = "{%- if tools %}<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>"
_LLAMA_31 = "{%- if custom_tools is defined %}{%- set tools = custom_tools %}{{- '<|python_tag|>' + tool_call.name }}"
_MISTRAL_V3 = "{%- if tools is not none %}{{- '[AVAILABLE_TOOLS] [' }}{{- '[TOOL_CALLS] [' }}"
_MAGISTRAL = "{%- if tools %}[AVAILABLE_TOOLS]{%- elif block.type == 'thinking' %}[THINK]{{ block.thinking }}[/THINK]"
_FUNCTIONGEMMA = "{%- if tools %}<start_function_declaration>…<start_function_call>call:"
_GEMMA4 = "{%- if tools %}<|tool>declaration:…<|tool_call>call:{{ name }}…{%- if enable_thinking %}<|channel>thought"
_DEEPSEEK_R1_0528 = (
    "{%- for tool in tools %}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['type'] + '<｜tool▁sep｜>' + "
    "'\\n' + '```json' + '\\n'…{%- if '</think>' in content %}<｜Assistant｜><think>\\n"
)
_DEEPSEEK_V31 = (
    "{%- if tools %}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>…"
    "{%- if not thinking %}</think>{%- else %}<think>"
)
_GRANITE_31 = "{%- if tools %}<|start_of_role|>tools<|end_of_role|>…write <tool_call> followed by a JSON list"
_GRANITE_32 = _GRANITE_31 + "{%- if thinking %}Write the thoughts after 'Here is my thought process:'"
_GRANITE_4 = "{%- if tools %}return a json object within <tool_call></tool_call> XML tags"
_PHI_4_MINI = "{% if 'tools' in message %}{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}"
_GLM_45 = "{%- if tools %}<tool_call>{function-name}\\n<arg_key>{arg-key-1}</arg_key>…/nothink…<think></think>"
_PLAIN = "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}{% endfor %}"

_THINK = ("<think>", "</think>")
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>")

FAMILIES = {
    "Qwen 2.5": ("qwen2", _HERMES, ("<tool_call>", "</tool_call>"), "hermes", ""),
    "Hermes 3": ("llama", _HERMES, ("<|im_end|>",), "hermes", ""),
    "Qwen 3": ("qwen3", _QWEN3, (*_THINK, "<tool_call>"), "hermes", "qwen3"),
    "Qwen3-Coder": ("qwen3_moe", _QWEN3_CODER, (*_THINK, "<tool_call>"), "qwen3_coder", ""),
    "Llama 3.1": ("llama", _LLAMA_31, ("<|python_tag|>",), "llama3_json", ""),
    "Llama 3.2, with the tag in its vocabulary alone": (
        "llama",
        "{%- if tools %}",
        ("<|python_tag|>",),
        "llama3_json",
        "",
    ),
    "Llama 4": ("llama4", _LLAMA_31, ("<|python_tag|>",), "llama4_pythonic", ""),
    "Mistral 7B v0.3": ("mistral", _MISTRAL_V3, ("[TOOL_CALLS]",), "mistral", ""),
    "Magistral": ("mistral3", _MAGISTRAL, ("[TOOL_CALLS]", "[THINK]", "[/THINK]"), "mistral", "mistral"),
    "FunctionGemma": ("gemma3_text", _FUNCTIONGEMMA, ("<start_function_call>",), "functiongemma", ""),
    "Gemma 4": ("gemma4", _GEMMA4, ("<|tool_call>", "<|channel>"), "gemma4", "gemma4"),
    "Gemma 3": ("gemma3", _PLAIN, ("<start_of_turn>",), "", ""),
    "gpt-oss": ("gpt_oss", "", ("<|channel|>",), "openai", "openai_gptoss"),
    "DeepSeek R1 0528": ("deepseek_v3", _DEEPSEEK_R1_0528, (*_THINK, *_DEEPSEEK), "deepseek_v3", "deepseek_r1"),
    "DeepSeek V3.1": ("deepseek_v3", _DEEPSEEK_V31, (*_THINK, *_DEEPSEEK), "deepseek_v31", "deepseek_v3"),
    "R1 distilled into Llama": ("llama", "<｜Assistant｜>{% if '</think>' in c %}", _THINK, "", "deepseek_r1"),
    "Granite 3.1": ("granite", _GRANITE_31, ("<|tool_call|>",), "granite", ""),
    "Granite 3.2": ("granite", _GRANITE_32, ("<|tool_call|>",), "granite", "granite"),
    "Granite 4": ("granitemoehybrid", _GRANITE_4, ("<tool_call>",), "granite4", ""),
    "Phi-4-mini": ("phi3", _PHI_4_MINI, ("<|tool|>", "<|/tool|>"), "phi4_mini_json", ""),
    "GLM 4.5": ("glm4_moe", _GLM_45, (*_THINK, "<tool_call>", "<arg_key>"), "glm45", "glm45"),
    "MiniMax M3": ("minimax_m3_vl", "{%- if tools %}", (), "minimax_m3", "minimax_m3"),
    "Step 3.5": ("step3p5", "{%- if tools %}<tool_call>\\n<function=…<parameter=", _THINK, "step3p5", "step3p5"),
    "MiMo": ("mimo", _HERMES + "<think>", _THINK, "mimo", "mimo"),
    "LongCat": ("longcat_flash", "{%- if tools %}<longcat_tool_call>", (), "longcat", ""),
    "Hunyuan 3": ("hy_v3", "{%- if tools %}", (), "hy_v3", "hy_v3"),
    "GLM 4.7": ("glm4_moe_lite", _GLM_45, (*_THINK, "<tool_call>", "<arg_key>"), "glm47", "glm47"),
    "GigaChat 3": ("deepseek_v3", "{%- if tools %}'function call' + add_tokens.role_sep", (), "gigachat3", ""),
    "GigaChat 3.1": ("deepseek_v3", "{%- if tools %}<|function_call|>", ("<|function_call|>",), "gigachat3", ""),
    "Laguna": (
        "laguna",
        "{%- if tools %}<arg_key>{%- if enable_thinking %}<think>",
        ("<assistant>",),
        "poolside_v1",
        "poolside_v1",
    ),
    "MiniCPM 5": ("llama", '{%- if tools %}<function name="f"><param name="p">', (), "minicpm5", ""),
    "Firefunction 2": ("llama", "{%- if tools %}functools[", (), "bare_json", ""),
    "Apriel 1.5": ("llava", "{%- if tools %}<tool_call></tool_call>: <tool_calls>[", (), "bare_json", ""),
    "Command R+": ("cohere", '{%- if tools %}{"tool_name": x, "parameters": y}', (), "bare_json", ""),
    "SmolLM2": ("llama", _PLAIN, ("<|im_start|>",), "", ""),
    "a base model": ("llama", "", (), "", ""),
}
FAMILIES_SINCE_0_32 = {
    "Kimi K3": ("kimi_k3", "", (), "kimi_k3", "kimi_k3"),
    "DeepSeek V4.1": ("deepseek_v41", "", (), "deepseek_v41", "deepseek_v41"),
    "Hunyuan 4": ("hy_v4", "{%- if tools %}", (), "hy_v4", "hy_v4"),
    "MuseGlimmer": ("muse_glimmer", "{%- if tools %}", (), "muse_glimmer", "muse_glimmer"),
    "dots": ("dots1", "{%- if tools %}<dots_function_call>", (), "dots", ""),
    "K2 Horizon": ("llama", "{%- if tools %}<ifm|tool_calls><ifm|tool_call>", (), "k2_horizon", ""),
}
both_versions = pytest.mark.parametrize(
    ("installed_tool", "installed_reasoning"),
    [(VLLM_0_26_TOOL, VLLM_0_26_REASONING), (VLLM_0_32_TOOL, VLLM_0_32_REASONING)],
    ids=["vLLM 0.26", "vLLM 0.32"],
)


@both_versions
@pytest.mark.parametrize(("model_type", "template", "tokens", "tool", "reasoning"), FAMILIES.values(), ids=FAMILIES)
def test_each_family_gets_the_parsers_of_its_format(
    *,
    installed_tool: frozenset[str],
    installed_reasoning: frozenset[str],
    model_type: str,
    template: str,
    tokens: tuple[str, ...],
    tool: str,
    reasoning: str,
) -> None:
    traits = Traits(model_type, template, frozenset(tokens))
    assert choose_tool_parser(traits, installed_tool | OWN_TOOL_PARSERS).name == tool
    assert choose_reasoning_parser(traits, installed_reasoning).name == reasoning


@pytest.mark.parametrize("family", FAMILIES_SINCE_0_32.values(), ids=FAMILIES_SINCE_0_32)
def test_a_newer_family_gets_the_parsers_of_a_newer_vllm_and_none_of_an_older(
    family: tuple[str, str, tuple[str, ...], str, str],
) -> None:
    traits = Traits(family[0], family[1], frozenset(family[2]))
    assert choose_tool_parser(traits, VLLM_0_32_TOOL).name == family[3]
    assert choose_reasoning_parser(traits, VLLM_0_32_REASONING).name == family[4]
    assert choose_tool_parser(traits, VLLM_0_26_TOOL).name == ""
    assert choose_reasoning_parser(traits, VLLM_0_26_REASONING).name == ""


@pytest.mark.parametrize("name", sorted({name for rule in parsers._TOOL_RULES for name in rule.candidates}))
def test_every_tool_parser_of_the_rules_exists_in_a_supported_vllm(name: str) -> None:
    assert name in VLLM_0_26_TOOL | VLLM_0_32_TOOL | OWN_TOOL_PARSERS


@pytest.mark.parametrize("name", sorted({name for rule in parsers._REASONING_RULES for name in rule.candidates}))
def test_every_reasoning_parser_of_the_rules_exists_in_a_supported_vllm(name: str) -> None:
    assert name in VLLM_0_26_REASONING | VLLM_0_32_REASONING | OWN_REASONING_PARSERS


def test_a_choice_says_what_told() -> None:
    chosen = choose_tool_parser(Traits("qwen2", _HERMES, frozenset()), VLLM_0_32_TOOL)
    assert chosen == ParserChoice("hermes", "<tool_call>")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_nothing_is_chosen_where_the_installed_vllm_has_no_parsers(family: tuple[str, str, tuple[str, ...]]) -> None:
    traits = Traits(family[0], family[1], frozenset(family[2]))
    assert choose_tool_parser(traits, ()) == choose_reasoning_parser(traits, ()) == ParserChoice()


@pytest.mark.parametrize(
    ("model_type", "template"),
    [
        ("llama", _LLAMA_31),
        ("mistral", _MISTRAL_V3),
        ("deepseek_v3", _DEEPSEEK_R1_0528),
        ("deepseek_v3", _DEEPSEEK_V31),
    ],
)
def test_no_parser_is_chosen_that_vllm_would_refuse_to_start_with_for_want_of_a_token(
    model_type: str, template: str
) -> None:
    traits = Traits(model_type, template, frozenset())
    assert choose_tool_parser(traits, VLLM_0_32_TOOL) == ParserChoice()
    assert choose_reasoning_parser(traits, VLLM_0_32_REASONING) == ParserChoice()


def test_a_template_that_takes_no_tools_gets_no_tool_parser_whatever_its_vocabulary() -> None:
    traits = Traits("qwen3", _PLAIN, frozenset({"<tool_call>", "<|python_tag|>", "[TOOL_CALLS]"}))
    assert choose_tool_parser(traits, VLLM_0_32_TOOL) == ParserChoice()


_QWEN3_INSTRUCT = (
    _HERMES + "{%- for message in messages %}{%- if '</think>' in content %}{{- '<think>\\n' + reasoning_content }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_QWEN3_THINKING = _QWEN3_INSTRUCT.replace("assistant\\n", "assistant\\n<think>\\n")


def test_a_template_that_only_shows_earlier_thinking_does_not_make_a_qwen_think() -> None:
    tokens = frozenset({*_THINK, "<tool_call>"})
    instruct, thinking = (Traits("qwen3", text, tokens) for text in (_QWEN3_INSTRUCT, _QWEN3_THINKING))

    assert choose_reasoning_parser(instruct, VLLM_0_32_REASONING) == ParserChoice()
    assert choose_reasoning_parser(thinking, VLLM_0_32_REASONING).name == "deepseek_r1"


_GO_TOOLS = (
    "{{- if .Tools }}Tools: {{ range .Tools }}{{ . }}{{ end }}{{ end }}{{- range .Messages }}{{ .Role }}\n"
    '{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}'
    "{{ .Content }}{{ end }}"
)
_GO_PARAMETERS = _GO_TOOLS.replace("arguments", "parameters")
_GO_HERMES = _GO_TOOLS.replace('{"name"', '<tool_call>{"name"').replace("}}}{{ end }}", "}}}</tool_call>{{ end }}")
_GO_THINK = "{{- range .Messages }}{{ .Role }}\n{{ .Content }}\n{{ end }}assistant\n{{ if .Think }}<think>{{ end }}"
_GO_HISTORY = "{{- range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}"


@pytest.mark.parametrize(
    ("template", "tool", "reasoning"),
    [
        (_GO_TOOLS, "bare_json", ""),
        (_GO_PARAMETERS, "bare_json", ""),
        (_GO_HERMES, "hermes", ""),
        (_GO_THINK, "", "plain_think"),
        (_GO_HISTORY, "", ""),
    ],
    ids=["bare calls", "bare calls with parameters", "calls in tags", "opens thinking", "shows earlier thinking only"],
)
def test_a_go_template_tells_how_a_model_without_tokens_for_it_calls_and_thinks(
    template: str, tool: str, reasoning: str
) -> None:
    traits = Traits("llama", in_jinja(template), frozenset({"<|im_start|>"}))

    assert choose_tool_parser(traits, VLLM_0_32_TOOL | OWN_TOOL_PARSERS).name == tool
    assert choose_reasoning_parser(traits, VLLM_0_32_REASONING | OWN_REASONING_PARSERS).name == reasoning


@pytest.mark.parametrize(("in_code", "tool"), [(True, "mistral"), (False, "")])
def test_mistrals_own_tokenizer_takes_tools_without_a_template(*, in_code: bool, tool: str) -> None:
    tokens = frozenset({"[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[THINK]", "[/THINK]"})
    traits = Traits("mistral3", "", tokens, is_rendered_in_code=in_code)

    assert choose_tool_parser(traits, VLLM_0_32_TOOL).name == tool
    assert choose_reasoning_parser(traits, VLLM_0_32_REASONING).name == ""


def test_a_model_with_tokens_for_thinking_needs_no_parser_of_ours() -> None:
    traits = Traits("qwen2", in_jinja(_GO_THINK), frozenset(_THINK))

    assert choose_reasoning_parser(traits, VLLM_0_32_REASONING | OWN_REASONING_PARSERS).name != "plain_think"


def _rule(*candidates: str, applies: bool = True, needs: tuple[str, ...] = ()) -> Rule:
    return Rule(candidates, f"rule of {candidates[0]}", lambda _: applies, needs)


@pytest.mark.parametrize(
    ("rules", "installed", "chosen"),
    [
        ([_rule("a"), _rule("b")], {"a", "b"}, "a"),
        ([_rule("a", applies=False), _rule("b")], {"a", "b"}, "b"),
        ([_rule("newest", "older")], {"older"}, "older"),
        ([_rule("newest", "older")], {"newest", "older"}, "newest"),
        ([_rule("missing"), _rule("general")], {"general"}, ""),
        ([_rule("a", needs=("<x>",)), _rule("general")], {"a", "general"}, ""),
        ([], {"a"}, ""),
    ],
    ids=[
        "the first that applies",
        "one that does not apply is passed over",
        "an older name where the newest is missing",
        "the best candidate first",
        "a more general rule does not stand in for a format that vLLM cannot read",
        "nor for one whose tokens the model lacks",
        "no rules",
    ],
)
def test_the_first_rule_that_applies_decides(rules: list[Rule], installed: set[str], chosen: str) -> None:
    assert parsers._first(rules, Traits("", "", frozenset()), installed).name == chosen
