"""What clients of OpenAI's and Anthropic's APIs send, and what vLLM gets of it (contract §5)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import count

from vllama.errors import RequestError, Unsupported
from vllama.ollama.openai.call import Call
from vllama.ollama.openai.chat import ChatCompletion
from vllama.ollama.openai.completions import Completion
from vllama.ollama.openai.messages import AnthropicMessage
from vllama.ollama.openai.own import CLASSIFY, RERANK, TOKENIZE, VllmCall
from vllama.ollama.openai.responses import Response

ALL = ("completion", "tools", "thinking", "vision", "insert")
HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
PNG = base64.b64encode(b"\x89PNG\r\n").decode()
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
PARAMETERS = {
    "temperature": 0.3, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.2, "presence_penalty": 0.4,
    "frequency_penalty": 0.5, "seed": 11, "num_predict": 99, "stop": ("END",), "num_ctx": 4096, "repeat_last_n": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A model's part of a request."""

    full_name: str = "registry.ollama.ai/library/m:latest"
    capabilities: tuple[str, ...] = ("completion",)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    messages: tuple[tuple[str, str], ...] = ()


PLAIN = Part()
DERIVED = Part(
    capabilities=ALL, parameters=PARAMETERS, system="Be brief.", messages=(("user", "a"), ("assistant", "b"))
)
OWN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def chat(**fields: Any) -> ChatCompletion:
    return ChatCompletion.parse(json.dumps({"model": "m", "messages": HI, **fields}).encode())


def completion(**fields: Any) -> Completion:
    return Completion.parse(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def response(**fields: Any) -> Response:
    return Response.parse(json.dumps({"model": "m", "input": "hi", **fields}).encode())


def message(**fields: Any) -> AnthropicMessage:
    return AnthropicMessage.parse(json.dumps({"model": "m", "max_tokens": 9, "messages": HI, **fields}).encode())


EVERY: list[Callable[..., Call]] = [chat, completion, response, message]
every = pytest.mark.parametrize("made", EVERY)


# --- what every API has in common


@every
def test_an_empty_body_is_eof(made: Callable[..., Call]) -> None:
    with pytest.raises(RequestError, match=r"^EOF$"):
        type(made()).parse(b" \n")  # type: ignore[attr-defined]


@every
def test_names_of_fields_match_whatever_their_case_and_null_counts_as_absent(made: Callable[..., Call]) -> None:
    body = made(Temperature=0.5, top_p=None).for_vllm(PLAIN)
    assert body["temperature"] == 0.5
    assert "top_p" not in body


@every
def test_fields_that_only_vllm_knows_go_on(made: Callable[..., Call]) -> None:
    assert made(min_p=0.25, cache_salt="x").for_vllm(PLAIN)["cache_salt"] == "x"


@every
@pytest.mark.parametrize("stated", [{"chat_template": "{{ x }}"}, {"chat_template_kwargs": {"chat_template": "x"}}])
def test_a_client_cannot_bring_a_chat_template(made: Callable[..., Call], stated: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"chat_template is not supported in a request"):
        made(**stated)


@every
@pytest.mark.parametrize(
    ("name", "value", "shown", "go"),
    [("temperature", "hot", "string", "float64"), ("stream", 1, "number", "bool"), ("model", [], "array", "string")],
)
def test_a_wrong_type_is_told_in_go_s_words(
    made: Callable[..., Call], name: str, value: object, shown: str, go: str
) -> None:
    with pytest.raises(
        RequestError, match=rf"^json: cannot unmarshal {shown} into Go struct field \w+\.{name} of type {go}$"
    ):
        made(**{name: value})


@every
def test_an_embedding_model_cannot_answer(made: Callable[..., Call]) -> None:
    with pytest.raises(Unsupported, match=r'^"m" does not support (chat|generate)$'):
        made().check(Part(capabilities=("embedding",)))


@pytest.mark.parametrize("made", [chat, response, message])
def test_tools_need_a_model_that_calls_them(made: Callable[..., Call]) -> None:
    tools = [{"name": "f", "input_schema": {}}] if made is message else [TOOL]
    made(tools=tools).check(DERIVED)
    with pytest.raises(Unsupported, match=r"^registry.ollama.ai/library/m:latest does not support tools$"):
        made(tools=tools).check(PLAIN)


@pytest.mark.parametrize("made", [chat, response, message])
def test_an_empty_list_of_tools_is_none_and_needs_no_choice(made: Callable[..., Call]) -> None:
    call = made(tools=[], tool_choice="auto")
    call.check(PLAIN)
    assert not {"tools", "tool_choice"} & call.for_vllm(PLAIN).keys()


@pytest.mark.parametrize(
    ("made", "limit", "stop"),
    [
        (chat, "max_tokens", "stop"),
        (completion, "max_tokens", "stop"),
        (response, "max_output_tokens", "stop"),
        (message, "max_tokens", "stop_sequences"),
    ],
)
def test_the_model_s_parameters_are_defaults_under_vllm_s_names(
    made: Callable[..., Call], limit: str, stop: str
) -> None:
    call = made()
    given = {**call.for_vllm(DERIVED), **call.beyond_the_api(DERIVED)}
    expected = {
        "temperature": 0.3, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2,
        "presence_penalty": 0.4, "frequency_penalty": 0.5, "seed": 11, stop: ["END"],
        limit: 9 if made is message else 99,
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected
    assert "num_ctx" not in given


@every
def test_what_the_client_says_wins_over_the_model(made: Callable[..., Call]) -> None:
    assert made(temperature=0).for_vllm(DERIVED)["temperature"] == 0


def test_parameters_are_kept_within_what_vllm_accepts() -> None:
    wild = {"temperature": 9.0, "top_p": 0.0, "top_k": -1, "presence_penalty": -7.0, "seed": -1, "num_predict": -2}
    body = chat().for_vllm(Part(parameters=wild))
    assert (body["temperature"], body["top_p"], body["top_k"], body["presence_penalty"]) == (2.0, 1e-6, 0, -2.0)
    assert not {"seed", "max_tokens"} & body.keys()


def test_repeat_last_n_of_0_turns_the_penalties_off() -> None:
    body = chat().for_vllm(Part(parameters={"repeat_last_n": 0, "repeat_penalty": 1.5}))
    assert (body["repetition_penalty"], body["presence_penalty"], body["frequency_penalty"]) == (1.0, 0.0, 0.0)


# --- chat completions


def test_the_model_s_system_and_messages_come_before_the_client_s() -> None:
    body = chat().for_vllm(DERIVED)
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, *OWN, *HI]


@pytest.mark.parametrize("role", ["system", "developer", "System"])
def test_a_client_s_own_system_replaces_the_model_s(role: str) -> None:
    body = chat(messages=[{"role": role, "content": "mine"}, *HI]).for_vllm(DERIVED)
    assert body["messages"] == [*OWN, {"role": role.lower(), "content": "mine"}, *HI]


@pytest.mark.parametrize(
    ("effort", "level", "switch"),
    [
        ("none", None, False), ("minimal", "low", True), ("low", "low", True), ("medium", "medium", True),
        ("high", "high", True), ("max", "high", True), ("xhigh", "high", True), ("ultra", "high", True),
        ("", None, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_efforts_become_levels_and_switches(effort: str, level: str | None, switch: bool, nested: bool) -> None:
    fields: dict[str, Any] = {"reasoning": {"effort": effort}} if nested else {"reasoning_effort": effort}
    body = chat(**fields).for_vllm(DERIVED)
    assert body.get("reasoning_effort") == level
    assert body["chat_template_kwargs"] == {"enable_thinking": switch, "thinking": switch}
    assert "reasoning" not in body


def test_a_client_s_own_template_arguments_win_over_the_effort() -> None:
    body = chat(reasoning_effort="high", chat_template_kwargs={"enable_thinking": False}).for_vllm(DERIVED)
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "thinking": True}


def test_only_a_thinking_model_gets_switches_and_only_none_is_allowed_for_others() -> None:
    call = chat(reasoning_effort="none")
    call.check(PLAIN)
    assert not {"chat_template_kwargs", "reasoning_effort"} & call.for_vllm(PLAIN).keys()
    with pytest.raises(Unsupported, match=r'^"m" does not support thinking$'):
        chat(reasoning_effort="low").check(PLAIN)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_below_1_is_none(name: str, value: int) -> None:
    assert name not in chat(**{name: value}).for_vllm(PLAIN)


def test_max_completion_tokens_counts_and_keeps_the_model_s_limit_out() -> None:
    body = chat(max_completion_tokens=3).for_vllm(DERIVED)
    assert (body["max_completion_tokens"], "max_tokens" in body) == (3, False)


@pytest.mark.parametrize(
    ("stop", "expected"), [("x", ["x"]), (["x", "", 3, "y"], ["x", "y"]), (7, []), ([], []), ("", [])]
)
def test_stop_is_a_text_or_a_list_and_nothing_else_counts(stop: object, expected: list[str]) -> None:
    assert chat(stop=stop).for_vllm(PLAIN)["stop"] == expected


@pytest.mark.parametrize("made", [chat, completion])
def test_several_greedy_answers_are_one(made: Callable[..., Call]) -> None:
    assert "n" not in made(n=2, temperature=0).for_vllm(PLAIN)
    assert "n" not in made(n=2).for_vllm(Part(parameters={"temperature": 0.0}))
    assert made(n=2, temperature=0.5).for_vllm(PLAIN)["n"] == 2
    assert made(n=2).for_vllm(PLAIN)["n"] == 2


@pytest.mark.parametrize("made", [chat, completion])
def test_the_number_of_beams_stays_though_temperature_is_0(made: Callable[..., Call]) -> None:
    assert made(n=2, temperature=0, use_beam_search=True).for_vllm(PLAIN)["n"] == 2
    assert "n" not in made(n=2, temperature=0, use_beam_search=False).for_vllm(PLAIN)


def test_what_vllm_refuses_and_ollama_ignores_is_left_out() -> None:
    body = chat(stream=False, stream_options={"include_usage": True}, top_logprobs=3).for_vllm(PLAIN)
    assert not {"stream_options", "top_logprobs"} & body.keys()
    kept = chat(stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=3).for_vllm(PLAIN)
    assert {"stream_options", "top_logprobs"} <= kept.keys()


@pytest.mark.parametrize(
    "stated",
    [
        {"json_schema": {"schema": {"type": "object"}}},
        {"json_schema": {"name": None, "schema": {"type": "object"}, "strict": None, "description": "x"}},
        {"schema": {"type": "object"}, "strict": True},
    ],
)
def test_a_schema_needs_no_name_and_may_stand_as_in_a_response(stated: dict[str, Any]) -> None:
    body = chat(response_format={"type": "json_schema", **stated}).for_vllm(PLAIN)
    named = {"name": "reply", "schema": {"type": "object"}}
    assert body["response_format"] == {"type": "json_schema", "json_schema": named}


@pytest.mark.parametrize("stated", [{}, {"json_schema": {}}, {"json_schema": None}, {"json_schema": {"name": "x"}}])
def test_a_format_without_a_schema_has_no_effect(stated: dict[str, Any]) -> None:
    assert "response_format" not in chat(response_format={"type": "json_schema", **stated}).for_vllm(PLAIN)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "invalid message content type: <nil>"),
        (True, "invalid message content type: bool"),
        (1.5, "invalid message content type: float64"),
        ({}, "invalid message content type: map[string]interface {}"),
        ([5], "invalid message format"),
        ([{"type": []}], "invalid message format"),
        ([{"type": "text"}], "invalid message format"),
        ([{"type": "nonsense", "text": "x"}], "invalid message format"),
        ([{"type": "image_url"}], "invalid message format"),
        ([{"type": "image_url", "image_url": {"url": 5}}], "invalid message format"),
        ([{"type": "image_url", "image_url": "HTTPS://x/y.png"}], "image URLs are not currently supported, please"),
        ([{"type": "image_url", "image_url": "file:///etc/passwd"}], "invalid image input"),
        ([{"type": "image_url", "image_url": "data:text/plain;base64,aGk="}], "invalid image input"),
        ([{"type": "image_url", "image_url": "data:image/png;base64,!!"}], "invalid image input"),
        ([{"type": "video_url", "video_url": {"url": "http://x/y.mp4"}}], "invalid message format"),
        ([{"type": "audio_url", "audio_url": {"url": "https://x/y.wav"}}], "invalid message format"),
    ],
)
def test_content_that_cannot_be_understood_is_refused_in_ollama_s_words(content: object, text: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat(messages=[*HI, {"role": "user", "content": content}])
    assert str(refused.value).startswith(text)


@pytest.mark.parametrize(
    ("sent", "content", "thinking"),
    [
        ({"content": None}, "", None),
        ({}, "", None),
        ({"content": None, "reasoning_content": "Hm."}, "", "Hm."),
        ({"content": "Yes.", "reasoning_content": "Hm.", "reasoning": None}, "Yes.", "Hm."),
        ({"content": "Yes.", "reasoning_content": "Hm.", "reasoning": "Ah."}, "Yes.", "Ah."),
        ({"content": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}]}, "", "Hm."),
        (
            {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]},
            [{"type": "text", "text": "Yes."}],
            "Hm.",
        ),
        (
            {"content": [{"type": "refusal", "refusal": "No."}]},
            [{"type": "text", "text": "No."}],
            None,
        ),
        ({"content": [{"type": "output_text", "text": "Yes."}]}, [{"type": "text", "text": "Yes."}], None),
        ({"content": ["Yes."]}, [{"type": "text", "text": "Yes."}], None),
        ({"content": []}, "", None),
    ],
)
def test_a_reply_is_taken_back_in_every_form_in_which_agents_send_it(
    sent: dict[str, Any], content: object, thinking: str | None
) -> None:
    message = chat(messages=[*HI, {"role": "assistant", **sent}, *HI]).for_vllm(PLAIN)["messages"][1]
    assert (message["content"], message.get("reasoning")) == (content, thinking)
    assert "reasoning_content" not in message


def test_a_tool_may_return_nothing() -> None:
    result = {"role": "tool", "tool_call_id": "c", "content": None}
    assert chat(messages=[*HI, result]).for_vllm(PLAIN)["messages"][1] == {**result, "content": ""}


@pytest.mark.parametrize("url", [f"data:image/png;base64,{PNG}", f"data:;base64,{PNG}"])
@pytest.mark.parametrize("nested", [False, True])
def test_images_in_base64_need_a_model_that_sees(url: str, *, nested: bool) -> None:
    part = {"type": "image_url", "image_url": {"url": url} if nested else url}
    call = chat(messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, part]}])
    call.check(DERIVED)
    with pytest.raises(Unsupported, match=r"does not support vision$"):
        call.check(PLAIN)


@pytest.mark.parametrize(
    ("arguments", "expected"), [('{"a":1}', '{"a":1}'), ({"a": 1}, '{"a":1}'), ("", "{}"), (None, "{}"), ("null", "{}")]
)
def test_past_calls_go_on_with_their_arguments_as_text(arguments: object, expected: str) -> None:
    past = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}
    result = {"role": "tool", "tool_call_id": "c", "content": "1"}
    body = chat(messages=[*HI, past, result]).for_vllm(PLAIN)
    assert body["messages"][1]["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": expected}}
    ]
    assert body["messages"][2] == result


@pytest.mark.parametrize("arguments", ["{", '{"path": "/tmp/x', "[1]", "7", "\x00"])
def test_a_past_call_whose_text_is_no_object_does_not_end_the_conversation(arguments: str) -> None:
    function = {"name": "f", "arguments": arguments}
    past = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    [made] = chat(messages=[*HI, past]).for_vllm(PLAIN)["messages"][1]["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": "{}"}


# --- completions


def test_a_prompt_is_that_of_a_native_request_that_does_not_think() -> None:
    asked = completion(suffix="x", reasoning_effort="high").as_generate()
    assert asked == {"model": "m", "prompt": "hi", "suffix": "x", "think": False}


def test_a_completion_has_no_limit_unless_there_is_one() -> None:
    assert completion().for_vllm(PLAIN)["max_tokens"] > 1_000_000  # vLLM's default is 16
    assert completion(max_tokens=-1).for_vllm(PLAIN)["max_tokens"] > 1_000_000
    assert completion(max_tokens=0, echo=True, raw=True).for_vllm(PLAIN)["max_tokens"] == 0
    assert completion(max_tokens=3).for_vllm(PLAIN)["max_tokens"] == 3


def test_a_prompt_may_be_the_only_text_of_a_list() -> None:
    """LangChain's completions, and vLLM's examples, send it so."""
    assert completion(prompt=["hi"]).as_generate()["prompt"] == "hi"
    assert completion(prompt=["hi"]).for_vllm(PLAIN)["prompt"] == "hi"


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1, 2], [3]], []])
def test_several_prompts_and_token_ids_are_for_raw_completions(prompt: list[Any]) -> None:
    assert completion(prompt=prompt, raw=True).for_vllm(PLAIN)["prompt"] == prompt
    with pytest.raises(
        RequestError, match=r"^json: cannot unmarshal array into Go struct field CompletionRequest.prompt"
    ):
        completion(prompt=prompt)


def test_echo_is_for_raw_prompts() -> None:
    assert "echo" not in completion(echo=True).for_vllm(PLAIN)
    raw = completion(echo=True, raw=True)
    assert (raw.raw, raw.for_vllm(PLAIN)["echo"], "raw" in raw.for_vllm(PLAIN)) == (True, True, False)


def test_a_suffix_needs_a_model_that_inserts() -> None:
    completion(suffix="x").check(DERIVED)
    with pytest.raises(Unsupported, match=r"^registry.ollama.ai/library/m:latest does not support insert$"):
        completion(suffix="x").check(PLAIN)


# --- responses


def test_a_text_becomes_a_message_after_the_model_s_own() -> None:
    body = response().for_vllm(DERIVED)
    assert body["input"] == [*OWN, *HI]
    assert body["instructions"] == "Be brief."


@pytest.mark.parametrize(
    "fields", [{"instructions": "mine"}, {"input": [{"role": "developer", "content": "mine"}, *HI]}]
)
def test_a_response_s_own_instructions_replace_the_model_s(fields: dict[str, Any]) -> None:
    assert response(**fields).for_vllm(DERIVED).get("instructions") in {"mine", None}


def test_a_response_s_effort_is_a_level_and_a_switch_and_its_summary_stays() -> None:
    body = response(reasoning={"effort": "xhigh", "summary": "auto"}).for_vllm(DERIVED)
    assert body["reasoning"] == {"summary": "auto", "effort": "high"}
    assert body["chat_template_kwargs"]["enable_thinking"] is True
    quiet = response(reasoning={"effort": "none"}).for_vllm(DERIVED)
    assert "reasoning" not in quiet
    assert quiet["chat_template_kwargs"]["enable_thinking"] is False


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"type": "input_file", "file_id": "x"}, "file inputs are not currently supported"),
        ({"type": "input_image", "image_url": "http://x/y.png"}, "image URLs are not currently supported"),
        ({"type": "input_image", "file_id": "x"}, "invalid message format"),
    ],
)
@pytest.mark.parametrize("kind", ["content", "output"])
def test_files_and_pictures_elsewhere_are_refused(part: dict[str, Any], text: str, kind: str) -> None:
    with pytest.raises(RequestError, match=text):
        response(input=[*HI, {"role": "user", kind: [part]}])


@pytest.mark.parametrize("value", [None, [], 5, {}])
def test_a_response_needs_an_input(value: object) -> None:
    with pytest.raises(RequestError, match=r"^input is required"):
        response(input=value)


# --- Anthropic's messages


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model": ""}, "model is required"),
        ({"max_tokens": None}, "max_tokens is required and must be positive"),
        ({"max_tokens": 0}, "max_tokens is required and must be positive"),
        ({"messages": []}, "messages is required"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 'the server tool "web_search" is not'),
    ],
)
def test_messages_refuses_in_ollama_s_words(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError) as refused:
        message(**fields)
    assert str(refused.value).startswith(text)


def test_counting_tokens_needs_no_limit() -> None:
    body = json.dumps({"model": "m", "messages": HI}).encode()
    assert AnthropicMessage.parse_count(body).for_vllm(PLAIN)["messages"] == HI


@pytest.mark.parametrize(
    ("fields", "switch", "effort"),
    [
        ({}, True, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True, None),
        ({"thinking": {"type": "disabled"}}, False, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True, "low"),
        ({"output_config": {"effort": "xhigh"}}, True, "high"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, False, None),
    ],
)
def test_thinking_is_a_switch_and_a_level(fields: dict[str, Any], switch: bool, effort: str | None) -> None:
    body = message(**fields).for_vllm(DERIVED)
    assert body["chat_template_kwargs"] == {"enable_thinking": switch, "thinking": switch}
    assert body.get("output_config", {}).get("effort") == effort
    assert "thinking" not in body


def test_a_plain_model_may_be_asked_to_think() -> None:
    call = message(thinking={"type": "enabled", "budget_tokens": 1024}, output_config={"effort": "high"})
    call.check(PLAIN)
    assert not {"thinking", "output_config", "chat_template_kwargs"} & call.for_vllm(PLAIN).keys()


@pytest.mark.parametrize("fields", [{"system": "mine"}, {"messages": [{"role": "system", "content": "mine"}, *HI]}])
def test_a_message_s_own_system_replaces_the_model_s(fields: dict[str, Any]) -> None:
    assert message(**fields).for_vllm(DERIVED).get("system") in {"mine", None}
    assert message().for_vllm(DERIVED)["system"] == "Be brief."


@pytest.mark.parametrize("inside_a_result", [False, True])
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"type": "url", "url": "http://x"}, "invalid image source type: url. Only base64 images are supported."),
        ({"type": "base64", "media_type": "image/png", "data": "!"}, "invalid base64 image data: "),
        (None, "invalid image source"),
    ],
)
def test_images_of_messages_are_base64(source: object, text: str, *, inside_a_result: bool) -> None:
    block = {"type": "image", "source": source}
    if inside_a_result:
        block = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    with pytest.raises(RequestError) as refused:
        message(messages=[{"role": "user", "content": [block]}])
    assert str(refused.value).startswith(text)


def test_images_in_messages_need_a_model_that_sees() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    call = message(messages=[{"role": "user", "content": [image]}])
    call.check(DERIVED)
    with pytest.raises(Unsupported, match=r"does not support vision$"):
        call.check(PLAIN)


# --- anything at all


WORDS = [
    "messages", "role", "content", "type", "text", "image_url", "url", "source", "data", "tools", "function", "name",
    "arguments", "tool_calls", "input", "output", "instructions", "reasoning", "effort", "reasoning_effort", "thinking",
    "output_config", "system", "stop", "stop_sequences", "stream", "stream_options", "max_tokens", "response_format",
    "json_schema", "prompt", "suffix", "raw", "echo", "chat_template_kwargs", "model", "Temperature", "input_audio",
]  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", "user", "system", "image", "image_url", "enabled", "custom", "data:;base64,", "low"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@every
@settings(max_examples=count(75, 300), deadline=None)
@given(st.dictionaries(st.sampled_from(WORDS), json_values, max_size=6))
def test_any_json_is_either_refused_or_passed_on(made: Callable[..., Call], fields: dict[str, Any]) -> None:
    try:
        call = made(**fields)
        call.check(DERIVED)
    except RequestError:
        return
    for part in (PLAIN, DERIVED):
        assert json.dumps(call.for_vllm(part))
        assert json.dumps(call.beyond_the_api(part))


# --- vLLM's own routes


@pytest.mark.parametrize(
    ("task", "capabilities", "verb"),
    [(RERANK, ("completion",), "rerank"), (RERANK, ("classify",), "rerank"), (CLASSIFY, ("embedding",), "classify")],
)
def test_vllm_s_own_routes_need_a_model_of_their_kind(task: Any, capabilities: tuple[str, ...], verb: str) -> None:
    call = VllmCall.parse(b'{"model":"m","query":"q"}', task)
    with pytest.raises(Unsupported, match=f'^"m" does not support {verb}$'):
        call.check(Part(capabilities=capabilities))


@pytest.mark.parametrize(
    ("task", "capabilities"),
    [
        (RERANK, ("rerank",)),
        (RERANK, ("embedding",)),
        (CLASSIFY, ("rerank",)),
        (CLASSIFY, ("classify",)),
        (TOKENIZE, ()),
    ],
)
def test_the_rest_is_vllm_s_own_business(task: Any, capabilities: tuple[str, ...]) -> None:
    call = VllmCall.parse(b'{"Model":"m","query":"q","documents":["a"],"top_n":1}', task)
    call.check(Part(capabilities=capabilities))
    assert (call.model, call.for_vllm(PLAIN)) == ("m", {"model": "m", "query": "q", "documents": ["a"], "top_n": 1})
