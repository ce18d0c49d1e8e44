"""Go templates in the manner of well-known models, each with the prompt that Ollama makes of it."""

# ruff: noqa: E501 # templates are read best in whole lines

from __future__ import annotations

from go_templates import (
    CHAT,
    TOOL_ROUND,
    WEATHER,
    WEATHER_FUNCTION,
    assistant,
    call,
    render,
    system,
    tool,
    user,
)

COLLECTED_SYSTEM = (
    '{{- $system := "" }}\n{{- range .Messages }}\n'
    '{{- if eq .Role "system" }}\n{{- if not $system }}{{ $system = .Content }}\n'
    '{{- else }}{{ $system = printf "%s\\n\\n%s" $system .Content }}\n{{- end }}\n'
)


def test_chatml_shows_every_message_and_opens_the_reply() -> None:
    template = (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    )
    assert render(template, *CHAT) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_of_single_rounds_stops_where_the_reply_begins() -> None:
    template = (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n"
        "{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
    )
    assert render(template, *CHAT) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_alpaca_puts_the_system_message_before_the_first_instruction_only() -> None:
    template = COLLECTED_SYSTEM + (
        '{{- else if eq .Role "user" }}\n{{- if $system }}{{ $system }}\n\n{{ $system = "" }}\n'
        "{{- end }}### Instruction:\n{{ .Content }}\n\n"
        '{{ else if eq .Role "assistant" }}### Response:\n{{ .Content }}\n\n{{ end }}\n{{- end }}### Response:\n'
    )
    assert render(template, *CHAT) == (
        "Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi!\n\n### Instruction:\nWho are you?\n\n### Response:\n"
    )


def test_llama2_wraps_the_system_message_into_the_first_turn() -> None:
    template = (
        "[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST] {{ .Response }} </s>"
    )
    assert render(template, *CHAT) == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi! </s>[INST] Who are you? [/INST] "
    )


def test_llama3_shows_its_tools_in_the_last_turn() -> None:
    template = (
        '{{- range $i, $_ := .Messages }}\n{{- $last := eq (len (slice $.Messages $i)) 1 }}\n{{- if eq .Role "user" }}'
        "<|start_header_id|>user<|end_header_id|>\n{{- if and $.Tools $last }}\n\nAnswer with a call.\n\n"
        "{{ range $.Tools }}\n{{- . }}\n{{ end }}\n{{ .Content }}<|eot_id|>\n{{- else }}\n\n{{ .Content }}<|eot_id|>\n"
        '{{- end }}\n{{- else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>\n\n'
        '{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}'
        '{{ .Content }}<|eot_id|>\n{{- else if eq .Role "tool" }}<|start_header_id|>ipython<|end_header_id|>\n\n'
        "{{ .Content }}<|eot_id|>\n{{- end }}\n"
        '{{- if and $last (ne .Role "assistant") }}<|start_header_id|>assistant<|end_header_id|>\n\n{{ end }}\n{{- end }}'
    )
    assert render(template, user("Weather?"), tools=[WEATHER]) == (
        "<|start_header_id|>user<|end_header_id|>\n\nAnswer with a call.\n\n"
        f'{{"type":"function","function":{WEATHER_FUNCTION}}}\n\nWeather?<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(template, *TOOL_ROUND, tools=[WEATHER]) == (
        "<|start_header_id|>user<|end_header_id|>\n\nWeather in Paris?<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>{"name": "get_weather", "parameters": {"city":"Paris"}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\nsunny<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_mistral_lists_its_tools_before_the_last_question() -> None:
    template = (
        '{{- range $index, $_ := .Messages }}\n{{- if eq .Role "user" }}\n'
        "{{- if and (eq (len (slice $.Messages $index)) 1) $.Tools }}[AVAILABLE_TOOLS] {{ $.Tools }}[/AVAILABLE_TOOLS]\n"
        '{{- end }}[INST] {{ .Content }}[/INST]\n{{- else if eq .Role "assistant" }}\n'
        "{{- if .Content }} {{ .Content }}</s>\n{{- else if .ToolCalls }}[TOOL_CALLS] [\n"
        '{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n{{- end }}]</s>\n'
        '{{- end }}\n{{- else if eq .Role "tool" }}[TOOL_RESULTS] {"content": {{ .Content }}}[/TOOL_RESULTS]\n'
        "{{- end }}\n{{- end }}"
    )
    assert render(template, user("Weather?"), tools=[WEATHER]) == (
        f'[AVAILABLE_TOOLS] [{{"type":"function","function":{WEATHER_FUNCTION}}}][/AVAILABLE_TOOLS][INST] Weather?[/INST]'
    )
    assert render(template, *TOOL_ROUND) == (
        "[INST] Weather in Paris?[/INST][TOOL_CALLS] "
        '[{"name": "get_weather", "arguments": {"city":"Paris"}}]</s>[TOOL_RESULTS] {"content": sunny}[/TOOL_RESULTS]'
    )


QWEN = (
    "{{- if .Messages }}\n{{- if or .System .Tools }}<|im_start|>system\n{{- if .System }}\n{{ .System }}\n{{- end }}\n"
    '{{- if .Tools }}\n\n# Tools\n\n<tools>\n{{- range .Tools }}\n{"type": "function", "function": {{ .Function }}}\n'
    "{{- end }}\n</tools>\n{{- end }}<|im_end|>\n{{ end }}\n{{- range $i, $_ := .Messages }}\n"
    '{{- $last := eq (len (slice $.Messages $i)) 1 -}}\n{{- if eq .Role "user" }}<|im_start|>user\n{{ .Content }}'
    '<|im_end|>\n{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ if .Content }}{{ .Content }}\n'
    '{{- else if .ToolCalls }}<tool_call>\n{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": '
    "{{ .Function.Arguments }}}\n{{ end }}</tool_call>\n{{- end }}{{ if not $last }}<|im_end|>\n{{ end }}\n"
    '{{- else if eq .Role "tool" }}<|im_start|>user\n<tool_response>\n{{ .Content }}\n</tool_response><|im_end|>\n'
    '{{ end }}\n{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant\n{{ end }}\n{{- end }}\n{{- else }}\n'
    "{{- if .Suffix }}<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>\n"
    "{{- else if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}\n{{- end }}"
)


def test_qwen_shows_tools_calls_and_results() -> None:
    assert render(QWEN, system("Be brief."), *TOOL_ROUND, tools=[WEATHER]) == (
        '<|im_start|>system\nBe brief.\n\n# Tools\n\n<tools>\n{"type": "function", "function": '
        f"{WEATHER_FUNCTION}}}\n</tools><|im_end|>\n<|im_start|>user\nWeather in Paris?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city":"Paris"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_qwen_continues_a_conversation_that_ends_with_the_assistant() -> None:
    assert render(QWEN, user("Count."), assistant("One, two")) == (
        "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\nOne, two"
    )


def test_a_template_for_chat_and_for_code_fills_the_gap_between_prompt_and_suffix() -> None:
    assert render(QWEN, user("ignored"), prompt="def f(", suffix="return x") == (
        "<|fim_prefix|>def f(<|fim_suffix|>return x<|fim_middle|>"
    )


def test_code_llama_and_starcoder_fill_the_gap_or_take_the_prompt_as_it_is() -> None:
    template = "{{- if .Suffix }}<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>\n{{- else }}{{ .Prompt }}\n{{- end }}"
    assert render(template, user("any"), prompt="def f(", suffix="}") == "<PRE> def f( <SUF>} <MID>"
    assert render(template, user("hello")) == "hello"
    starcoder = "{{ if .Suffix }}<file_sep>\n<fim_prefix>\n{{ .Prompt }}<fim_suffix>{{ .Suffix }}<fim_middle>{{ end }}"
    assert render(starcoder, prompt="a", suffix="b") == "<file_sep>\n<fim_prefix>\na<fim_suffix>b<fim_middle>"


def test_deepseek_r1_thinks_where_the_request_says_so() -> None:
    template = (
        "{{- if .System }}{{ .System }}{{ end }}\n{{- range $i, $_ := .Messages }}\n"
        '{{- $last := eq (len (slice $.Messages $i)) 1 }}\n{{- if eq .Role "user" }}<｜User｜>{{ .Content }}\n'
        '{{- else if eq .Role "assistant" }}<｜Assistant｜>\n'
        "{{- if and $.IsThinkSet (and $last .Thinking) -}}\n<think>\n{{ .Thinking }}\n</think>\n{{- end }}"
        '{{ .Content }}{{- if not $last }}<｜end▁of▁sentence｜>{{- end }}\n{{- end }}\n{{- if and $last (ne .Role "assistant") }}'
        "<｜Assistant｜>\n{{- if and $.IsThinkSet (not $.Think) -}}\n<think>\n\n</think>\n\n{{ end }}\n{{- end -}}\n{{- end }}"
    )
    asked = [user("2+2?"), assistant("4", reasoning="easy"), user("3+3?")]
    begin = "<｜User｜>2+2?<｜Assistant｜>4<｜end▁of▁sentence｜><｜User｜>3+3?<｜Assistant｜>"
    assert render(template, *asked, enable_thinking=True) == begin
    assert render(template, *asked, enable_thinking=False) == begin + "<think>\n\n</think>\n\n"
    assert render(template, *asked) == begin
    assert render(template, *asked[:2], enable_thinking=True) == "<｜User｜>2+2?<｜Assistant｜><think>\neasy\n</think>4"


def test_gemma_folds_the_system_message_into_the_first_user_turn() -> None:
    template = COLLECTED_SYSTEM + (
        '{{- continue }}\n{{- else if eq .Role "user" }}<start_of_turn>user\n{{- if $system }}\n{{ $system }}\n'
        '{{- $system = "" }}\n{{- end }}\n{{- else if eq .Role "assistant" }}<start_of_turn>model\n{{- end }}\n'
        "{{ .Content }}<end_of_turn>\n{{ end }}<start_of_turn>model\n"
    )
    assert render(template, *CHAT) == (
        "<start_of_turn>user\nBe brief.\nHello<end_of_turn>\n<start_of_turn>model\nHi!<end_of_turn>\n"
        "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_phi3_takes_each_system_message_where_it_stands() -> None:
    template = (
        "{{ if .System }}<|system|>\n{{ .System }}<|end|>\n{{ end }}{{ if .Prompt }}<|user|>\n{{ .Prompt }}<|end|>\n"
        "{{ end }}<|assistant|>\n{{ .Response }}<|end|>\n"
    )
    assert render(template, *CHAT, assistant("I?"), system("Be kind."), user("Go on")) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi!<|end|>\n"
        "<|user|>\nWho are you?<|end|>\n<|assistant|>\nI?<|end|>\n"
        "<|system|>\nBe kind.<|end|>\n<|user|>\nGo on<|end|>\n<|assistant|>\n"
    )


def test_command_r_writes_its_tools_as_python() -> None:
    template = (
        "{{- if .Tools }}<|SYSTEM_TOKEN|>\n{{- range .Tools }}\ndef {{ .Function.Name }}(\n"
        "{{- range $name, $property := .Function.Parameters.Properties }}{{ $name }}: {{ $property.Type }}, {{ end }})\n"
        "    '''{{ .Function.Description }}\n\n{{- if .Function.Parameters.Properties }}\n\n    Args:\n"
        "{{- range $name, $property := .Function.Parameters.Properties }}\n"
        "        {{ $name }} ({{ $property.Type }}): {{ $property.Description }}\n{{- end }}\n{{- end }}\n    '''\n{{- end }}\n"
        '{{- end }}\n{{- range .Messages }}\n{{- if eq .Role "system" }}\n{{- continue }}\n{{- end }}<|TURN|>\n'
        '{{- if eq .Role "user" }}<|USER|>{{ .Content }}\n{{- else if eq .Role "assistant" }}<|BOT|>\n'
        "{{- if .Content }}{{ .Content }}\n{{- else if .ToolCalls }}\nAction: [\n{{- range .ToolCalls }}\n"
        '    {"tool_name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}\n{{- end }}\n]\n{{- end }}\n'
        '{{- else if eq .Role "tool" }}<results>\n{{ .Content }}</results>\n{{- end }}<|END|>\n{{- end }}<|TURN|><|BOT|>'
    )
    assert render(template, system("unseen"), *TOOL_ROUND, tools=[WEATHER]) == (
        "<|SYSTEM_TOKEN|>\ndef get_weather(city: string, unit: string, )\n    '''Weather of a city\n\n    Args:\n"
        "        city (string): the city\n        unit (string): c or f\n    '''<|TURN|><|USER|>Weather in Paris?<|END|>"
        '<|TURN|><|BOT|>\nAction: [\n    {"tool_name": "get_weather", "parameters": {"city":"Paris"}}\n]<|END|>'
        "<|TURN|><results>\nsunny</results><|END|><|TURN|><|BOT|>"
    )


def test_granite_numbers_its_documents_by_the_length_of_padded_text() -> None:
    template = (
        '{{- $count := 0 }}{{- range .Messages }}{{- if eq .Role "document" }}{{- $count = len (printf "a%*s" $count "") }}'
        "<doc{{ $count }}>{{ .Content }}{{- else }}<|start_of_role|>{{ .Role }}<|end_of_role|>{{ .Content }}<|end_of_text|>\n"
        "{{- end }}{{- end }}<|start_of_role|>assistant<|end_of_role|>"
    )
    documents = [{"role": "document", "content": "one"}, user("x"), {"role": "document", "content": "two"}]
    assert render(template, *documents, user("Which?")) == (
        "<doc1>one<|start_of_role|>user<|end_of_role|>x<|end_of_text|>"
        "<doc2>two<|start_of_role|>user<|end_of_role|>Which?<|end_of_text|><|start_of_role|>assistant<|end_of_role|>"
    )


def test_the_recorded_template_for_tools_renders_a_call_and_its_result() -> None:
    template = (
        "{{- if .Tools }}<|im_start|>system\nTools: {{ range .Tools }}{{ . }}{{ end }}<|im_end|>\n{{ end }}"
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ if .ToolCalls }}{{ range .ToolCalls }}"
        '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}{{ else }}{{ .Content }}{{ end }}'
        "<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    )
    assert render(template, *TOOL_ROUND, tools=[WEATHER]) == (
        f'<|im_start|>system\nTools: {{"type":"function","function":{WEATHER_FUNCTION}}}<|im_end|>\n'
        "<|im_start|>user\nWeather in Paris?<|im_end|>\n"
        '<|im_start|>assistant\n{"name": "get_weather", "arguments": {"city":"Paris"}}<|im_end|>\n'
        "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_recorded_template_for_thinking_shows_earlier_thoughts_and_opens_new_ones() -> None:
    template = (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}"
        "{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ if .Think }}<think>{{ end }}"
    )
    asked = [user("a"), assistant("b", reasoning="because"), user("c")]
    begin = (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>because</think>b<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(template, *asked, enable_thinking=True) == begin + "<think>"
    assert render(template, *asked, enable_thinking=False) == begin


def test_the_recorded_template_for_insertion_renders_as_ollama_counted_it() -> None:
    template = "{{ if .Suffix }}PRE {{ .Prompt }} SUF {{ .Suffix }} MID{{ else }}{{ .Prompt }}{{ end }}"
    assert render(template, prompt="def f(", suffix="return 1") == "PRE def f( SUF return 1 MID"
    assert render(template, user("hello")) == "hello"


def test_the_recorded_template_of_mario_repeats_its_line_for_each_round() -> None:
    template = "{{ .System }} USER: {{ .Prompt }} ASSISTANT: {{ .Response }}"
    conversation = [system("You are Mario."), user("hi"), assistant("It's-a me"), user("Who?")]
    assert render(template, *conversation) == ("You are Mario. USER: hi ASSISTANT: It's-a me USER: Who? ASSISTANT: ")


def test_several_calls_and_results_keep_their_order_and_names() -> None:
    template = (
        "{{ range .Messages }}{{ range .ToolCalls }}[{{ .ID }} {{ .Function.Name }}{{ range $k, $v := .Function.Arguments }}"
        ' {{ $k }}={{ $v }}{{ end }}]{{ end }}{{ if eq .Role "tool" }}<{{ .ToolName }} {{ .ToolCallID }} {{ .Content }}>'
        "{{ end }}{{ end }}"
    )
    calls = [call("b", {"y": 1, "x": "é", "z": True}), call("a", {})]
    results = [tool("1", name="b", tool_call_id="call_1"), tool("2", tool_name="a")]
    assert render(template, user("q"), assistant(None, tool_calls=calls), *results) == (
        "[call_1 b x=é y=1 z=true][call_1 a]<b call_1 1><a  2>"
    )
