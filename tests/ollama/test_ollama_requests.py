"""Requests of `/api/generate` and `/api/chat`, and what is refused of them, against a recorded Ollama 0.24.0."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from recorded_exchanges import ANSWERED, REFUSED

from vllama.durations import FOREVER
from vllama.errors import RequestError, TemplateError, Unsupported, VllamaError
from vllama.ollama.checks import check_chat, check_generate
from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.ollama.status import error_body, status_of

FULL_NAME = "registry.ollama.ai/library/smollm2:135m"
TEXT_MODEL = ("completion",)
MODEL_OF_ALL_KINDS = ("completion", "vision", "thinking", "tools", "insert")

# Contract §10: a client that Ollama turns away here is served, or told so with a status that fits better.
TAKEN_HERE = {
    "215_chat_content_list",
    "235_chat_keep_alive_string_300",
    "809_chat_tool_arguments_as_string_error",
}
NOT_FOR_ITS_FIELDS = {"182_generate_num_ctx_small_truncate_false", "252_chat_invalid_model_name"}
BAD_REQUEST_HERE = {
    "140_generate_options_temperature_string",
    "259_chat_options_wrong_type",
    "260_chat_options_wrong_type_stream",
}


def check(request: GenerateRequest | ChatRequest, capabilities: tuple[str, ...] = TEXT_MODEL) -> None:
    if isinstance(request, GenerateRequest):
        check_generate(request, capabilities, FULL_NAME)
    else:
        check_chat(request, capabilities, FULL_NAME)


def parse_and_check(body: bytes, path: str, capabilities: tuple[str, ...]) -> None:
    check((GenerateRequest if path == "/api/generate" else ChatRequest).parse(body), capabilities)


def generate(**fields: Any) -> GenerateRequest:
    return GenerateRequest.parse(orjson.dumps({"model": "m", "prompt": "p", **fields}))


def chat(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    return ChatRequest.parse(orjson.dumps({"model": "m", "messages": messages, **fields}))


def refusal(**fields: Any) -> str:
    with pytest.raises(RequestError) as refused:
        generate(**fields)
    return str(refused.value)


@pytest.mark.parametrize("record", sorted(REFUSED.keys() - TAKEN_HERE - NOT_FOR_ITS_FIELDS))
def test_what_ollama_refused_is_refused_with_its_text_and_status(record: str) -> None:
    exchange = REFUSED[record]
    with pytest.raises(VllamaError) as refused:
        parse_and_check(exchange.body, exchange.path, TEXT_MODEL)
    assert str(refused.value) == exchange.error
    assert status_of(refused.value) == (400 if record in BAD_REQUEST_HERE else exchange.status)


@pytest.mark.parametrize("record", sorted(TAKEN_HERE))
def test_what_clients_get_wrong_in_a_way_that_is_plain_is_taken(record: str) -> None:
    exchange = REFUSED[record]
    parse_and_check(exchange.body, exchange.path, TEXT_MODEL)


@pytest.mark.parametrize("record", sorted(ANSWERED))
def test_what_ollama_answered_is_taken(record: str) -> None:
    exchange = ANSWERED[record]
    parse_and_check(exchange.body, exchange.path, MODEL_OF_ALL_KINDS)


def test_fields_are_read_whatever_their_case_and_bytes_after_the_object_ignored() -> None:
    shouted = GenerateRequest.parse(ANSWERED["180_generate_case_insensitive_fields"].body)
    assert (shouted.model, shouted.prompt, shouted.stream) == ("smollm2:135m", "Why is the sky blue?", False)
    followed = GenerateRequest.parse(ANSWERED["176_generate_trailing_garbage"].body)
    assert (followed.prompt, followed.stream) == ("hi", False)


def test_what_a_request_leaves_out_has_ollamas_defaults() -> None:
    request = GenerateRequest.parse(b'{"model":"m"}')
    assert (request.stream, request.truncate, request.shift) == (True, True, True)
    assert (request.raw, request.logprobs, request.top_logprobs, request.debug_render_only) == (False, False, 0, False)
    assert (request.format, request.keep_alive, request.think, request.options) == (None, None, None, {})
    assert (request.prompt, request.system, request.suffix, request.images, request.context) == ("", "", "", (), ())


def test_null_is_as_good_as_nothing() -> None:
    names = ("stream", "format", "keep_alive", "options", "think", "truncate", "shift", "logprobs", "top_logprobs")
    nulls = dict.fromkeys(names)
    assert generate(**nulls) == generate()
    assert chat(**nulls) == chat()
    assert ChatRequest.parse(b'{"model":"m","messages":null,"tools":null}') == chat()


def test_the_decoded_fields_of_a_completion() -> None:
    request = generate(
        stream=False, suffix="s", images=["aGk="], system="y", template="t", context=[1, 2], raw=True, truncate=False,
        shift=False, logprobs=True, top_logprobs=3, _debug_render_only=True, keep_alive="5m", think="high",
        format={"type": "object"}, options={"seed": 1},
    )  # fmt: skip
    assert (request.stream, request.truncate, request.shift, request.raw) == (False, False, False, True)
    assert (request.suffix, request.system, request.template) == ("s", "y", "t")
    assert (request.images, request.context) == ((b"hi",), (1, 2))
    assert (request.logprobs, request.top_logprobs, request.debug_render_only) == (True, 3, True)
    assert (request.keep_alive, request.think) == (300 * 10**9, "high")
    assert (request.format, request.options) == ({"type": "object"}, {"seed": 1})


def test_only_the_prompt_decides_whether_a_completion_just_loads() -> None:
    assert generate(prompt="", system="s", suffix="s", images=["aGk="]).is_empty
    assert not generate(prompt=" ").is_empty


def test_a_chat_without_messages_just_loads() -> None:
    assert chat().is_empty
    assert not chat({"role": "user"}).is_empty


@pytest.mark.parametrize(("sent", "ns"), [(0, 0), ("0s", 0), (-1, FOREVER), ("-1m", FOREVER), (1.5, 1_500_000_000)])
def test_keep_alive_is_nanoseconds_or_for_ever(sent: object, ns: int) -> None:
    assert generate(keep_alive=sent).keep_alive == ns


def test_keep_alive_format_and_think_are_lifted_out_of_options() -> None:
    request = generate(options={"keep_alive": "1m", "format": "json", "think": False, "seed": 1})
    assert (request.keep_alive, request.format, request.think) == (60 * 10**9, "json", False)


def test_what_stands_beside_options_wins_over_what_stands_in_them() -> None:
    request = generate(
        keep_alive=0, think=True, format="json", options={"keep_alive": "1m", "think": False, "format": {}}
    )
    assert (request.keep_alive, request.format, request.think) == (0, "json", True)


@pytest.mark.parametrize(("sent", "kept"), [(None, None), ("", None), ("json", "json"), ({}, {}), ({"a": 1}, {"a": 1})])
def test_format_is_json_a_schema_or_nothing(sent: object, kept: object) -> None:
    request = generate(format=sent)
    check(request)
    assert request.format == kept


@pytest.mark.parametrize(
    ("sent", "shown"), [("yaml", r"\"yaml\""), (5, "5"), ([1], "[1]"), (True, "true"), ("JSON", r"\"JSON\"")]
)
def test_another_format_is_refused_as_it_was_sent(sent: object, shown: str) -> None:
    with pytest.raises(RequestError) as refused:
        check(generate(format=sent))
    assert str(refused.value) == f'invalid format: "{shown}"; expected "json" or a valid JSON Schema object'


@pytest.mark.parametrize("sent", [True, False, "low", "medium", "high", "max", "xhigh", "High", 'x"'])
def test_think_is_a_switch_or_any_level(sent: object) -> None:
    assert generate(think=sent).think == sent


@pytest.mark.parametrize(("sent", "meant"), [("none", False), ("false", False), ("", None), (None, None)])
def test_texts_that_mean_no_thinking_and_no_text_are_no_levels(sent: str | None, meant: bool | None) -> None:
    assert generate(think=sent).think is meant


@pytest.mark.parametrize("sent", [3, 1.5, [], {}, ["high"]])
def test_think_of_another_kind_is_refused(sent: object) -> None:
    assert refusal(think=sent) == 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'


@pytest.mark.parametrize("sent", [-1, 21, 10**30])
def test_alternatives_are_counted_from_0_to_20(sent: int) -> None:
    body = f'{{"model":"m","top_logprobs":{sent}}}'.encode()
    with pytest.raises(RequestError, match="top_logprobs"):
        GenerateRequest.parse(body)
    with pytest.raises(RequestError, match="top_logprobs"):
        ChatRequest.parse(body)


@pytest.mark.parametrize("sent", [0, 20])
def test_the_ends_of_the_range_of_alternatives_are_accepted(sent: int) -> None:
    assert generate(top_logprobs=sent).top_logprobs == sent
    assert chat(top_logprobs=sent).top_logprobs == sent


def test_a_message_keeps_what_was_said_and_its_role_in_lower_case() -> None:
    [message] = chat({"role": "USER", "content": "hi", "images": ["aGk="], "thinking": "hm"}).messages
    assert (message.role, message.content, message.images, message.thinking) == ("user", "hi", (b"hi",), "hm")


@pytest.mark.parametrize("record", ["213_chat_missing_content", "214_chat_content_null"])
def test_a_message_without_content_is_empty(record: str) -> None:
    [message] = ChatRequest.parse(ANSWERED[record].body).messages
    assert (message.role, message.content) == ("user", "")


def test_a_tool_call_and_its_result_are_kept() -> None:
    _, call, result = ChatRequest.parse(ANSWERED["219_chat_tool_role_message"].body).messages
    [made] = call.tool_calls
    assert (made.name, made.arguments) == ("get_weather", {"city": "Paris"})
    assert (result.role, result.content, result.tool_name) == ("tool", "sunny", "get_weather")


def test_arguments_sent_as_text_are_the_object_that_they_spell() -> None:
    _, call = ChatRequest.parse(REFUSED["809_chat_tool_arguments_as_string_error"].body).messages
    assert call.tool_calls[0].arguments == {"city": "Paris"}


@pytest.mark.parametrize("arguments", [None, "", " ", {}])
def test_a_call_may_have_no_arguments(arguments: object) -> None:
    [message] = chat(
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    ).messages
    assert message.tool_calls[0].arguments == {}


@pytest.mark.parametrize("arguments", ["[1]", "7", "not json", '{"path": "/tmp/x', "\x00"])
def test_a_past_call_whose_text_is_no_object_does_not_end_the_conversation(arguments: str) -> None:
    [message] = chat(
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    ).messages
    assert message.tool_calls[0].arguments == {}


@pytest.mark.parametrize("arguments", [[1], 5])
def test_arguments_that_are_neither_object_nor_text_are_refused(arguments: object) -> None:
    with pytest.raises(RequestError):
        chat({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]})


def test_text_parts_are_joined_which_ollama_refuses() -> None:
    [message] = chat(
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ).messages
    assert message.content == "a\nb"


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {}}, {"type": "text"}, "a", None])
def test_parts_that_are_no_text_are_refused_as_ollama_does(part: object) -> None:
    with pytest.raises(RequestError) as refused:
        chat({"role": "user", "content": [part]})
    assert str(refused.value) == REFUSED["215_chat_content_list"].error


@pytest.mark.parametrize(
    ("message", "field", "go"),
    [
        ({"role": 5}, "role", "string"),
        ({"content": 5}, "content", "string"),
        ({"images": [5]}, "images", "api.ImageData"),
        ({"tool_name": 5}, "tool_name", "string"),
    ],
)
def test_a_wrong_type_in_a_message_names_the_field(message: dict[str, Any], field: str, go: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat(message)
    assert (
        str(refused.value)
        == f"json: cannot unmarshal number into Go struct field ChatRequest.messages.{field} of type {go}"
    )


def test_a_tool_keeps_its_whole_schema() -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "x-unknown": [1, {"a": None}]}},
    }
    assert chat(tools=[tool]).tools == (tool,)


@pytest.mark.parametrize("tools", ["f", ["f"], [[1]], {}])
def test_tools_that_are_no_objects_are_refused(tools: object) -> None:
    with pytest.raises(RequestError, match=r"Go struct field ChatRequest\.tools of type api\.Tool"):
        chat(tools=tools)


@pytest.mark.parametrize(
    ("request_", "capabilities", "message"),
    [
        (generate(think=True), TEXT_MODEL, '"m" does not support thinking'),
        (generate(think="low"), TEXT_MODEL, '"m" does not support thinking'),
        (generate(), ("embedding",), '"m" does not support generate'),
        (generate(suffix="s"), TEXT_MODEL, f"{FULL_NAME} does not support insert"),
        (generate(images=["aGk="]), TEXT_MODEL, f"{FULL_NAME} does not support vision"),
        (chat(think=True), TEXT_MODEL, '"m" does not support thinking'),
        (chat(), ("embedding",), '"m" does not support chat'),
        (chat(tools=[{"type": "function"}]), TEXT_MODEL, f"{FULL_NAME} does not support tools"),
        (chat({"role": "user", "images": ["aGk="]}), TEXT_MODEL, f"{FULL_NAME} does not support vision"),
    ],
)
def test_a_capability_that_the_model_lacks_is_named(
    request_: GenerateRequest | ChatRequest, capabilities: tuple[str, ...], message: str
) -> None:
    with pytest.raises(Unsupported) as refused:
        check(request_, capabilities)
    assert str(refused.value) == message
    assert status_of(refused.value) == 400


def test_a_model_that_can_is_not_refused() -> None:
    png = "iVBORw0KGgo="
    check(generate(think=True, images=[png]), MODEL_OF_ALL_KINDS)
    with_all = chat({"role": "user", "images": [png]}, think=True, tools=[{"type": "function"}])
    check(with_all, MODEL_OF_ALL_KINDS)
    check(generate(think=False))
    check(chat({"role": "user"}, tools=[]))


def test_what_is_no_image_is_refused_where_it_stands_once_the_model_could_see_it() -> None:
    with pytest.raises(RequestError, match=r"^invalid image input: images\[0\] is neither"):
        check(generate(images=["aGk="]), MODEL_OF_ALL_KINDS)
    with pytest.raises(RequestError, match=r"^invalid image input: messages\[1\]\.images\[0\] is neither"):
        check(chat({"role": "user"}, {"role": "user", "images": ["aGk="]}), MODEL_OF_ALL_KINDS)


def test_images_go_with_no_suffix() -> None:
    with pytest.raises(RequestError, match=r"^images cannot be combined with a suffix"):
        check(generate(images=["iVBORw0KGgo="], suffix="}"), (*MODEL_OF_ALL_KINDS, "insert"))


@pytest.mark.parametrize("conflict", [{"system": "s"}, {"template": "t"}, {"context": [1]}])
def test_a_raw_prompt_goes_with_nothing_that_shapes_it(conflict: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"^raw mode does not support template, system, or context$"):
        check(generate(raw=True, **conflict))
    check(generate(raw=True))


def test_a_template_that_cannot_be_used_is_refused() -> None:
    check(generate(template="{{ .Prompt }}"))
    with pytest.raises(TemplateError, match=r"^template: :1: unclosed action$"):
        check(generate(template="{{ .Prompt"))


def test_jinja_of_a_client_is_refused_because_it_could_keep_a_worker_busy_for_hours() -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(RequestError, match="must be a Go template"):
        check(generate(template=endless))


# Field names of both requests, with values of any kind: most of them wrong.
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
    | st.sampled_from([1e300, -1e300, "json", "high", "aGk=", "5m", "-1", "text", "{}", '{"a":1}', "[", "data:,"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "images", "tool_calls", "function", "arguments", "id",
                         "name", "keep_alive", "format", "think", "thinking", "tool_name", "FORMAT"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
_FIELDS = st.sampled_from(
    ["model", "MODEL", "prompt", "suffix", "images", "system", "template", "context", "stream", "raw", "format",
     "keep_alive", "options", "think", "truncate", "shift", "logprobs", "top_logprobs", "_debug_render_only",
     "messages", "tools", "width"],
)  # fmt: skip
_BODIES = st.dictionaries(_FIELDS, _JSON, max_size=4).map(orjson.dumps)


@given(st.one_of(_BODIES, _JSON.map(orjson.dumps), st.binary()))
@example(b'{"keep_alive":1e300}')
@example(b'{"keep_alive":"' + b"9" * 5000 + b's"}')
@example(b'{"context":[' + b"9" * 5000 + b"]}")
@example(rb'{"model":"\ud800","prompt":"\udfff"}')
@example(b'{"think":' + b"[" * 5000)
@example(b'{"format":' + b"[" * 500 + b"]" * 500 + b"}")
def test_any_body_is_a_request_or_an_error_for_the_client(body: bytes) -> None:
    for path in ("/api/generate", "/api/chat"):
        try:
            parse_and_check(body, path, MODEL_OF_ALL_KINDS)
        except RequestError as error:
            error_body(str(error))  # it can be sent
