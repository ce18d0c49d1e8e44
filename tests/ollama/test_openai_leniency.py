"""What Ollama accepts on `/v1` and vLLM would refuse: what vLLM gets instead (contract §5)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from test_openai_requests import DERIVED, EVERY, HI, PLAIN, TOOL, chat, completion, message, response

from vllama.errors import RequestError
from vllama.ollama.openai.call import Call

every = pytest.mark.parametrize("made", EVERY)
PNG = f"data:image/png;base64,{base64.b64encode(bytes(9)).decode()}"
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
DESCRIBED = 'Edit files.\n\nThe input must match this lark grammar:\nstart: "x"'


# --- sampling


@every
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("top_p", 0, 1e-6), ("top_p", 1.5, 1.0), ("top_p", -1, 1e-6),
        ("temperature", 9, 2.0), ("temperature", -1, 0.0), ("temperature", 1.5, 1.5),
        ("presence_penalty", 5, 2.0), ("frequency_penalty", -3.5, -2.0), ("top_k", -5, 0),
    ],
)  # fmt: skip
def test_sampling_beyond_vllm_s_range_is_moved_to_its_edge(
    made: Callable[..., Call], name: str, value: float, expected: float
) -> None:
    assert made(**{name: value}).for_vllm(PLAIN)[name] == expected


@pytest.mark.parametrize(("made", "name"), [(chat, "stop"), (completion, "stop"), (message, "stop_sequences")])
def test_any_number_of_stop_strings_goes_on_without_empty_ones(made: Callable[..., Call], name: str) -> None:
    stop = [f"<stop{number}>" for number in range(12)]
    assert made(**{name: [*stop, ""]}).for_vllm(PLAIN)[name] == stop


def test_a_stop_sequence_that_is_no_text_is_told_in_go_s_words() -> None:
    with pytest.raises(RequestError, match=r"into Go struct field MessagesRequest\.stop_sequences of type string$"):
        message(stop_sequences=[5])


@pytest.mark.parametrize("value", [0, -1, "x", True, []])
def test_a_number_of_answers_that_is_none_is_one(value: object) -> None:
    assert "n" not in chat(n=value).for_vllm(PLAIN)


# --- fields that Ollama does not read


@every
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metadata", {"a": 1}), ("metadata", []), ("user", 5), ("service_tier", "fast"), ("store", "yes"),
        ("truncation", "middle"), ("prompt_cache_key", 5), ("max_tool_calls", 0), ("logit_bias", []),
        ("logit_bias", {"x": 1}),
    ],
)  # fmt: skip
def test_a_value_that_nobody_reads_ends_no_request(made: Callable[..., Call], name: str, value: object) -> None:
    assert name not in made(**{name: value}).for_vllm(PLAIN)


@every
@pytest.mark.parametrize(
    ("name", "value"),
    [("metadata", {"a": "b"}), ("user", "me"), ("service_tier", "auto"), ("store", False), ("logit_bias", {"5": -100})],
)
def test_what_vllm_accepts_goes_on(made: Callable[..., Call], name: str, value: object) -> None:
    assert made(**{name: value}).for_vllm(PLAIN)[name] == value


# --- content of chats


@pytest.mark.parametrize(
    "image",
    [
        PNG,
        {"url": PNG},
        {"url": PNG, "detail": None},
        {"url": PNG, "detail": "original"},
        {"url": PNG, "detail": "", "more": 1},
    ],
)
def test_an_image_may_be_a_plain_url_and_its_detail_anything(image: object) -> None:
    part = {"type": "image_url", "image_url": image, "cache_control": None}
    body = chat(messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]).for_vllm(DERIVED)
    assert body["messages"][-1]["content"] == [
        {"type": "text", "text": "?"},
        {"type": "image_url", "image_url": {"url": PNG}},
    ]


def test_a_detail_that_vllm_knows_is_kept() -> None:
    part = {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}
    assert chat(messages=[{"role": "user", "content": [part]}]).for_vllm(DERIVED)["messages"][-1]["content"] == [part]


def test_an_empty_list_of_calls_lets_content_be_null() -> None:
    past: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
    assert chat(messages=[*HI, past]).for_vllm(PLAIN)["messages"][1] == {**past, "content": ""}


# --- tools


def test_a_custom_tool_of_a_chat_is_a_function_with_one_text() -> None:
    custom = {"name": "apply_patch", "description": "Edit files.", "format": {"type": "grammar", "grammar": {
        "syntax": "lark", "definition": 'start: "x"'}}}  # fmt: skip
    body = chat(tools=[{"type": "custom", "custom": custom}]).for_vllm(DERIVED)
    (tool,) = body["tools"]
    assert tool["type"] == "function"
    assert (tool["function"]["name"], tool["function"]["description"]) == ("apply_patch", DESCRIBED)
    assert tool["function"]["parameters"]["required"] == ["input"]


def test_a_custom_tool_of_a_response_keeps_its_type_and_tells_its_grammar() -> None:
    body = response(tools=[PATCH]).for_vllm(DERIVED)
    assert body["tools"] == [{"type": "custom", "name": "apply_patch", "description": DESCRIBED}]
    free = {"type": "custom", "name": "say", "format": {"type": "text"}}
    assert response(tools=[free]).for_vllm(DERIVED)["tools"] == [{"type": "custom", "name": "say", "description": ""}]


def test_a_custom_tool_inside_a_namespace_is_one_too() -> None:
    body = response(tools=[{"type": "namespace", "name": "files", "description": "d", "tools": [PATCH]}])
    (namespace,) = body.for_vllm(DERIVED)["tools"]
    assert namespace["tools"] == [{"type": "custom", "name": "apply_patch", "description": DESCRIBED}]


def test_functions_of_either_api_are_understood_by_both() -> None:
    flat = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": None}
    assert chat(tools=[flat]).for_vllm(DERIVED)["tools"] == [TOOL]
    assert response(tools=[TOOL]).for_vllm(DERIVED)["tools"] == [{"type": "function", **TOOL["function"]}]  # type: ignore[dict-item]


@pytest.mark.parametrize("made", [chat, response])
def test_tools_that_only_openai_s_servers_run_are_left_out(made: Callable[..., Call]) -> None:
    search = {"type": "web_search", "external_web_access": False}
    body = made(tools=[search, TOOL], tool_choice="auto").for_vllm(DERIVED)
    assert [tool["type"] for tool in body["tools"]] == ["function"]
    alone = made(tools=[search], tool_choice="auto", parallel_tool_calls=True)
    alone.check(PLAIN)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & alone.for_vllm(PLAIN).keys()


@pytest.mark.parametrize("made", [chat, response])
def test_a_tool_that_is_no_object_is_told_in_go_s_words(made: Callable[..., Call]) -> None:
    with pytest.raises(RequestError, match=r"^json: cannot unmarshal string into Go struct field \w+\.tools of type"):
        made(tools=["f"])


@pytest.mark.parametrize("made", [chat, response])
@pytest.mark.parametrize(
    ("choice", "expected"),
    [("auto", "auto"), ("required", "required"), ("any", "required"), ("none", "none"), ("f", None), (True, None),
     ({"type": "file_search"}, None), ({}, None), (None, None)],
)  # fmt: skip
def test_a_choice_of_tools_is_vllm_s_or_none(made: Callable[..., Call], choice: object, expected: object) -> None:
    assert made(tools=[TOOL], tool_choice=choice).for_vllm(DERIVED).get("tool_choice") == expected


def test_a_choice_of_one_tool_has_the_form_of_its_api() -> None:
    nested, flat = {"type": "function", "function": {"name": "f"}}, {"type": "function", "name": "f"}
    for choice in (nested, flat):
        assert chat(tools=[TOOL], tool_choice=choice).for_vllm(DERIVED)["tool_choice"] == nested
        assert response(tools=[TOOL], tool_choice=choice).for_vllm(DERIVED)["tool_choice"] == flat
    custom = {"type": "custom", "name": "apply_patch"}
    assert response(tools=[PATCH], tool_choice=custom).for_vllm(DERIVED)["tool_choice"] == custom


@pytest.mark.parametrize("nested", [False, True])
def test_a_choice_among_some_tools_leaves_out_the_others(nested: bool) -> None:
    other = {"type": "function", "function": {"name": "g"}}
    said = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    choice = {"type": "allowed_tools", **({"allowed_tools": said} if nested else said)}
    body = chat(tools=[TOOL, other], tool_choice=choice).for_vllm(DERIVED)
    assert (body["tools"], body["tool_choice"]) == ([other], "required")


# --- responses


@pytest.mark.parametrize("kind", ["content", "output"])
@pytest.mark.parametrize("detail", [{}, {"detail": None}, {"detail": "tiny"}])
def test_an_image_of_a_response_needs_no_detail(kind: str, detail: dict[str, Any]) -> None:
    image = {"type": "input_image", "image_url": PNG, "file_id": None, **detail}
    item: dict[str, Any] = {"role": "user", "content": [image]}
    if kind == "output":
        item = {"type": "function_call_output", "call_id": "c", "output": [image]}
    body = response(input=[item]).for_vllm(DERIVED)
    assert body["input"][-1][kind] == [{"type": "input_image", "image_url": PNG, "detail": "auto"}]


@pytest.mark.parametrize(
    ("item", "thought"),
    [
        ({"summary": [], "encrypted_content": "Hm."}, "Hm."),
        ({"summary": [{"type": "summary_text", "text": "Hm."}]}, "Hm."),
        ({"id": "rs_1", "content": [{"type": "reasoning_text", "text": "Hm."}], "encrypted_content": None}, "Hm."),
    ],
)
def test_earlier_thinking_is_read_wherever_it_stands(item: dict[str, Any], thought: str) -> None:
    body = response(input=[*HI, {"type": "reasoning", **item}, *HI]).for_vllm(PLAIN)
    (found,) = (item for item in body["input"] if item.get("type") == "reasoning")
    assert (found["content"], found["summary"]) == ([{"type": "reasoning_text", "text": thought}], [])
    assert "encrypted_content" not in found


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "reasoning", "summary": [], "encrypted_content": None},
    ],
)
def test_items_of_which_a_model_gets_nothing_are_left_out(item: dict[str, Any]) -> None:
    assert response(input=[*HI, item, *HI]).for_vllm(PLAIN)["input"] == [*HI, *HI]


def test_an_assistant_s_message_keeps_all_of_its_text() -> None:
    parts = [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}, {"type": "x"}]
    item = {"type": "message", "role": "assistant", "content": parts, "id": None, "status": "incomplete"}
    assert response(input=[*HI, item]).for_vllm(PLAIN)["input"][1] == {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "ab", "annotations": []}],
        "status": "incomplete",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"), [('{"a": 1}', '{"a": 1}'), ("", "{}"), ('{"cmd": "ls /t', "{}"), ("[1]", "{}")]
)
def test_a_past_call_whose_text_is_no_object_does_not_end_the_responses(arguments: str, expected: str) -> None:
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    assert response(input=[*HI, item]).for_vllm(PLAIN)["input"][1] == {**item, "arguments": expected}


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_an_assistant_s_message_needs_no_type_and_its_parts_have_any(kind: str) -> None:
    said = {"role": "assistant", "content": [{"type": kind, "text": "hello"}]}
    parts = [{"type": "output_text", "text": "hello", "annotations": []}]
    made = {"type": "message", "role": "assistant", "content": parts}
    assert response(input=[*HI, said]).for_vllm(PLAIN)["input"][1] == made


@pytest.mark.parametrize("kind", ["text", "output_text"])
def test_a_part_of_a_user_s_message_may_have_the_type_of_another_api(kind: str) -> None:
    item = {"role": "user", "content": [{"type": kind, "text": "hello", "annotations": []}]}
    made = {"role": "user", "content": [{"type": "input_text", "text": "hello"}]}
    assert response(input=[item]).for_vllm(PLAIN)["input"] == [made]


def test_arguments_and_outputs_may_be_objects() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": {"a": 1}}
    output = {"type": "function_call_output", "call_id": "c", "output": {"b": 2}}
    assert response(input=[*HI, call, output]).for_vllm(PLAIN)["input"][1:] == [
        {**call, "arguments": '{"a":1}'},
        {**output, "output": '{"b":2}'},
    ]


def test_a_tool_s_output_may_be_missing() -> None:
    item = {"type": "function_call_output", "call_id": "c", "output": None}
    assert response(input=[*HI, item]).for_vllm(PLAIN)["input"][1]["output"] == ""


def test_a_response_leaves_out_what_vllm_refuses() -> None:
    body = response(
        background=True,
        include=["reasoning.encrypted_content", "web_search_call.results", "message.output_text.logprobs"],
        reasoning={"effort": None, "summary": "long", "generate_summary": None},
        text={"verbosity": "loud", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    ).for_vllm(PLAIN)
    assert body["include"] == ["message.output_text.logprobs"]
    assert body["text"] == {"format": {"type": "json_schema", "schema": {"type": "object"}, "name": "reply"}}
    assert not {"background", "reasoning"} & body.keys()


@pytest.mark.parametrize("text", ["x", {"format": {"type": "grammar"}}, {"format": None}, {"format": "json"}])
def test_a_text_format_that_ollama_ignores_is_none(text: object) -> None:
    assert response(text=text).for_vllm(PLAIN)["text"] == {}


# --- Anthropic's messages


def blocks(*given: dict[str, Any], role: str = "user") -> Any:
    return message(messages=[*HI, {"role": role, "content": list(given)}]).for_vllm(DERIVED)["messages"][-1]["content"]


def test_blocks_that_ollama_ignores_are_left_out_and_a_message_without_any_too() -> None:
    text = {"type": "text", "text": "a"}
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "x"}}
    assert blocks(text, pdf, {"type": "search_result"}, {"type": "text", "text": None}) == [text]
    assert message(messages=[*HI, {"role": "user", "content": [pdf]}]).for_vllm(PLAIN)["messages"] == HI


def test_a_document_that_is_text_is_shown() -> None:
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "It rains."}}
    assert blocks(document) == [{"type": "text", "text": "It rains."}]


def test_nulls_inside_blocks_are_absent() -> None:
    result = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": None}], "is_error": None}
    assert blocks(result) == [{"type": "tool_result", "tool_use_id": "c", "content": []}]
    assert blocks({"type": "thinking", "thinking": "Hm.", "signature": None}, role="assistant") == [
        {"type": "thinking", "thinking": "Hm."}
    ]


@pytest.mark.parametrize(
    ("sent", "made"), [({"a": 1}, {"a": 1}), ('{"a": 1}', {"a": 1}), ('{"a', {}), ("", {}), ([], {}), (None, {})]
)
def test_a_past_use_of_a_tool_has_an_object_as_input(sent: object, made: dict[str, Any]) -> None:
    use = {"type": "tool_use", "id": "t", "name": "f"}
    assert blocks({**use, "input": sent}, role="assistant") == [{**use, "input": made}]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "web_search_result", "title": "A", "url": "u"}, {"type": "x"}], "- A: u\n"),
        ({"type": "web_search_tool_result_error", "error_code": "max_uses"}, "web_search_tool_result_error: max_uses"),
        ({"type": "web_search_tool_result_error"}, "web_search_tool_result_error"),
        ("found", "found"),
        ({"a": 1}, '{"a":1}'),
    ],
)
def test_an_earlier_search_is_shown_as_a_call_and_its_result(content: object, text: str) -> None:
    use = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}}
    assert blocks(use, role="assistant") == [{**use, "type": "tool_use"}]
    assert blocks({"type": "web_search_tool_result", "tool_use_id": "s", "content": content}) == [
        {"type": "tool_result", "tool_use_id": "s", "content": text}
    ]


def test_a_message_s_role_may_be_written_in_any_case_and_its_content_be_null() -> None:
    body = message(messages=[{"role": "User", "content": None}, {"role": "Developer", "content": "x"}]).for_vllm(PLAIN)
    assert body["messages"] == [{"role": "user", "content": ""}, {"role": "system", "content": "x"}]


def test_a_system_prompt_keeps_its_texts() -> None:
    body = message(system=[{"type": "text", "text": "a", "cache_control": None}, {"type": "image"}, "x"])
    assert body.for_vllm(PLAIN)["system"] == [{"type": "text", "text": "a"}]


def test_a_tool_needs_no_schema_and_those_that_clients_run_are_functions() -> None:
    tools = [{"name": "f", "description": None}, {"type": "bash_20250124", "name": "bash"}]
    assert message(tools=tools).for_vllm(DERIVED)["tools"] == [
        {"name": "f", "input_schema": {"type": "object"}},
        {"type": "bash_20250124", "name": "bash", "input_schema": {"type": "object"}},
    ]


@pytest.mark.parametrize("choice", ["auto", {"type": "function"}, {"type": "tool"}, {}])
def test_a_choice_that_anthropic_does_not_know_is_none(choice: object) -> None:
    assert "tool_choice" not in message(tools=[{"name": "f"}], tool_choice=choice).for_vllm(DERIVED)


def test_efforts_are_read_in_any_case_and_unknown_ones_ignored() -> None:
    assert message(output_config={"effort": " High "}).for_vllm(DERIVED)["output_config"] == {"effort": "high"}
    assert message(output_config={"effort": "enormous"}).think is None


@every
def test_a_request_with_its_odd_values_is_json(made: Callable[..., Call]) -> None:
    assert json.dumps(made(tools=[PATCH] if made is response else [], top_p=0).for_vllm(DERIVED))


@pytest.mark.parametrize("kind", [{}, [], 5, None])
def test_a_type_that_is_no_text_does_no_harm(kind: object) -> None:
    assert "tools" not in chat(tools=[{"type": kind}]).for_vllm(DERIVED)
    assert "tools" not in response(tools=[{"type": kind}]).for_vllm(DERIVED)
    assert blocks({"type": "text", "text": "a"}, {"type": kind}) == [{"type": "text", "text": "a"}]
