"""vLLM's own `/v1` routes under our names, with the clients of OpenAI and Anthropic that vLLM brings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest
import zstandard

from engine.server import Server
from vllama.names import ModelName
from vllama.store.manifest import ChatMessage
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
QUESTION = "What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="ollama", max_retries=0, timeout=120) as made:
        yield made


def test_models_lists_the_store_and_one_can_be_retrieved(client: openai.OpenAI) -> None:
    (listed,) = (model for model in client.models.list().data if model.id == MODEL)

    assert (listed.object, listed.owned_by) == ("model", "library")
    assert client.models.retrieve(MODEL) == listed


@pytest.mark.parametrize("name", [MODEL, "SmolLM2:135M", "registry.ollama.ai/library/smollm2:135m"])
def test_chat_completions_answer_under_every_spelling_of_the_name(client: openai.OpenAI, name: str) -> None:
    reply = client.chat.completions.create(model=name, messages=MESSAGES, temperature=0, max_tokens=32)

    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == name
    assert reply.usage
    assert reply.usage.prompt_tokens == 16


def test_chat_completions_stream_the_same_words_and_the_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=32)
    *chunks, last = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    counts = [(usage.prompt_tokens, usage.completion_tokens) for usage in (last.usage, whole.usage) if usage]
    assert counts == [(16, counts[0][1])] * 2


def test_completions_answer_and_stream_the_same_words(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    whole = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8)
    chunks = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8, stream=True)

    assert whole.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_the_routes_work_whatever_content_type_the_client_names(server: Server, content_type: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
    reply = server.post("/v1/chat/completions", body, **{"content-type": content_type})

    assert reply.status_code == 200
    assert "Paris" in reply.json()["choices"][0]["message"]["content"]


def test_the_routes_work_without_a_content_type(server: Server) -> None:
    body = {"model": MODEL, "prompt": "The capital of France is", "raw": True, "temperature": 0, "max_tokens": 8}
    request = server.client.build_request("POST", "/v1/completions", content=json.dumps(body))
    assert "content-type" not in request.headers
    reply = server.client.send(request)

    assert reply.status_code == 200
    assert "Paris" in reply.json()["choices"][0]["text"]


def test_a_stream_is_server_sent_events_up_to_done(server: Server) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 8, "stream": True}
    reply = server.post("/v1/chat/completions", body)

    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["model"] == MODEL for event in events[:-1])


def test_a_model_that_is_not_there_is_not_found_in_openais_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'nosuchmodel' not found"):
        client.chat.completions.create(model="nosuchmodel", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nosuchmodel")


def test_what_vllm_refuses_is_a_bad_request_in_ollama_s_shape(server: Server) -> None:
    reply = server.post("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "prompt_logprobs": -2})

    assert reply.status_code == 400
    error = reply.json()["error"]
    assert "prompt_logprobs" in error.pop("message")
    assert error == {"type": "invalid_request_error", "param": "prompt_logprobs", "code": None}


def test_a_prompt_that_is_too_long_is_refused(client: openai.OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "word " * 10_000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length") as refused:
        client.chat.completions.create(model=MODEL, messages=long)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_that_the_context_has_no_room_for_is_no_error(client: openai.OpenAI, limit: str) -> None:
    limits: dict[str, Any] = {limit: 100_000}
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, **limits)
    assert "Paris" in (reply.choices[0].message.content or "")


def test_max_completion_tokens_ends_the_reply(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=2)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage
    assert reply.usage.completion_tokens == 2


def test_a_completion_s_prompt_goes_through_the_chat_template_unless_it_is_raw(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": QUESTION, "temperature": 0, "max_tokens": 32}
    chat = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=32)
    templated = client.completions.create(**asked)
    raw = client.completions.create(**asked, extra_body={"raw": True})

    assert templated.usage
    assert chat.usage
    assert raw.usage
    assert templated.usage.prompt_tokens == chat.usage.prompt_tokens
    assert templated.choices[0].text == chat.choices[0].message.content
    assert raw.usage.prompt_tokens == 7


def test_several_raw_prompts_are_answered_in_order(client: openai.OpenAI) -> None:
    ids = [504, 3575, 282]  # "The capital of"
    for prompt in (["The capital of", "One, two,"], [ids, [ids[0]]]):
        asked = {"model": "smollm2:135m", "max_tokens": 2, "temperature": 0, "extra_body": {"raw": True}}
        reply = client.completions.create(prompt=prompt, **asked)  # type: ignore[call-overload]
        assert [choice.index for choice in reply.choices] == [0, 1]
        assert all(choice.text for choice in reply.choices)


def test_a_completion_without_a_limit_is_longer_than_16_tokens(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt="Count from one to twenty.", temperature=0, stop="ten")
    assert reply.usage
    assert reply.usage.completion_tokens > 16


def test_a_reply_may_be_asked_for_as_json(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    nameless: Any = {"type": "json_schema", "json_schema": {"schema": schema}}
    reply = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Bob is 22. JSON."}], temperature=0, max_tokens=60,
        response_format=nameless,
    )  # fmt: skip
    assert isinstance(json.loads(reply.choices[0].message.content or "")["age"], int)


def test_a_body_may_be_packed_with_zstd(server: Server) -> None:
    body = json.dumps({"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 8}).encode()
    headers = {"content-encoding": "zstd"}
    reply = server.client.post("/v1/chat/completions", content=zstandard.compress(body), headers=headers)
    assert "Paris" in reply.json()["choices"][0]["message"]["content"]


def test_responses_answer_and_stream_the_same_words(server: Server, client: openai.OpenAI) -> None:
    whole = client.responses.create(model="SmolLM2:135m", input=QUESTION, temperature=0, max_output_tokens=32)
    events = list(
        client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=32, stream=True)
    )

    assert "Paris" in whole.output_text
    assert whole.model == "SmolLM2:135m"
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text


def test_messages_answer_and_stream_the_same_words(server: Server) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="ollama", max_retries=0, timeout=120) as made:
        asked: dict[str, Any] = {
            "model": "SmolLM2:135m", "messages": MESSAGES, "max_tokens": 100_000, "extra_body": {"temperature": 0},
        }  # fmt: skip
        whole = made.messages.create(**asked, extra_query={"beta": "true"})
        with made.messages.stream(**asked) as stream:
            text = "".join(stream.text_stream)
        counted = made.messages.count_tokens(model=MODEL, messages=MESSAGES)
        with pytest.raises(anthropic.BadRequestError) as refused:
            made.messages.create(**{**asked, "messages": []})

    (block,) = whole.content
    assert block.type == "text"
    assert "Paris" in block.text == text
    assert (whole.model, whole.stop_reason) == ("SmolLM2:135m", "end_turn")
    assert counted.input_tokens == whole.usage.input_tokens == 16
    answer = refused.value.response.json()
    assert answer.pop("request_id").startswith("req_")
    assert answer == {"type": "error", "error": {"type": "invalid_request_error", "message": "messages is required"}}


def test_texts_become_tokens_and_back(server: Server) -> None:
    tokens = server.post("/tokenize", {"model": MODEL, "prompt": QUESTION}).json()["tokens"]
    assert server.post("/detokenize", {"model": MODEL, "tokens": tokens}).json() == {"prompt": QUESTION}


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/audio/transcriptions", "/classify"])
def test_what_the_model_cannot_do_is_a_bad_request(server: Server, path: str) -> None:
    form = {"data": {"model": MODEL}, "files": {"file": b"RIFF"}}
    asked = {"model": MODEL, "input": "x", "query": "q", "documents": ["d"]}
    reply = server.client.post(path, **form) if "audio" in path else server.post(path, asked)  # type: ignore[arg-type]
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"


HI: list[Any] = [{"role": "user", "content": "hi"}]


def test_a_client_that_asks_an_engine_that_has_died_gets_the_next_one(breakable: Server, tiny: str) -> None:
    """vLLM's API server goes on for some seconds, and refuses everything."""
    worker = breakable.load(tiny)
    asked = {"model": tiny, "messages": HI, "max_tokens": 4}
    breakable.engines()[0].kill()
    refused = breakable.post("/v1/chat/completions", asked)
    answered = breakable.post("/v1/chat/completions", asked)

    if refused.status_code != 200:
        assert refused.status_code == 500
        assert "model runner has unexpectedly stopped" in refused.json()["error"]["message"]
    assert answered.status_code == 200, answered.text
    assert breakable.worker(tiny).main != worker.main


TEMPLATE = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
RENDERED = "system=Be brief.;user=a;assistant=b;user=hi;"


@pytest.fixture
def derived(store: ModelStore, tiny: str) -> str:
    """A model with a part of its own over the tiny one."""
    name = ModelName.parse("derived")
    store.put(
        replace(
            store.get(ModelName.parse(tiny)),
            name=name,
            system="Be brief.",
            messages=(ChatMessage("user", "a"), ChatMessage("assistant", "b")),
            parameters={"num_predict": 3, "temperature": 0, "seed": 5, "repeat_penalty": 1.3},
            template=TEMPLATE,
        )
    )
    return name.display


def test_a_derived_model_is_itself_on_every_route(breakable: Server, derived: str, tiny: str) -> None:
    routes: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": HI},
        "/v1/completions": {"prompt": "hi"},
        "/v1/responses": {"input": "hi"},
        "/v1/messages": {"messages": HI, "max_tokens": 3},
    }
    breakable.ask("/api/generate", {"model": derived})
    made = {path: breakable.post(path, {"model": "Derived", **asked}).json() for path, asked in routes.items()}
    tokenize = {"model": "derived", "prompt": RENDERED, "add_special_tokens": False}
    expected = breakable.post("/tokenize", tokenize).json()["count"]

    usages = [reply["usage"] for reply in made.values()]
    assert {reply["model"] for reply in made.values()} == {"Derived"}
    assert [usage.get("prompt_tokens", usage.get("input_tokens")) for usage in usages] == [expected] * 4
    assert [usage.get("completion_tokens", usage.get("output_tokens")) for usage in usages] == [3] * 4
    texts = {
        made["/v1/chat/completions"]["choices"][0]["message"]["content"],
        made["/v1/completions"]["choices"][0]["text"],
        made["/v1/responses"]["output"][0]["content"][0]["text"],
        made["/v1/messages"]["content"][0]["text"],
    }
    assert len(texts) == 1


CHUNK = {
    "id",
    "object",
    "created",
    "model",
    "system_fingerprint",
    "choices",
    "choices[].index",
    "choices[].finish_reason",
}
USAGE = {"usage", "usage.prompt_tokens", "usage.completion_tokens", "usage.total_tokens"}
RESPONSE = {
    "background", "created_at", "frequency_penalty", "id", "incomplete_details", "instructions",
    "max_output_tokens", "max_tool_calls", "metadata", "model", "object", "output", "output[].content",
    "output[].content[].annotations", "output[].content[].logprobs", "output[].content[].text",
    "output[].content[].type", "output[].id", "output[].role", "output[].status", "output[].type",
    "parallel_tool_calls", "presence_penalty", "previous_response_id", "reasoning", "service_tier",
    "status", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p",
    "truncation", "usage", "usage.input_tokens", "usage.input_tokens_details",
    "usage.input_tokens_details.cached_tokens", "usage.output_tokens", "usage.output_tokens_details",
    "usage.output_tokens_details.reasoning_tokens", "usage.total_tokens",
}  # fmt: skip
OLLAMA_S_KEYS: dict[tuple[str, bool], set[str]] = {
    ("/v1/chat/completions", False): {
        *CHUNK, *USAGE, "choices[].message", "choices[].message.role", "choices[].message.content",
    },
    ("/v1/chat/completions", True): {
        *CHUNK, *USAGE, "choices[].delta", "choices[].delta.role", "choices[].delta.content",
    },
    ("/v1/completions", False): {*CHUNK, *USAGE, "choices[].text"},
    ("/v1/completions", True): {*CHUNK, *USAGE, "choices[].text"},
    ("/v1/responses", False): RESPONSE,
    ("/v1/responses", True): {
        "content_index", "delta", "item", "item.id", "item.role", "item.status", "item.type", "item_id", "logprobs",
        "output_index", "part", "part.annotations", "part.logprobs", "part.text", "part.type", "response",
        "sequence_number", "text", "type", *(f"response.{key}" for key in RESPONSE),
    },
    ("/v1/messages", False): {
        "id", "type", "role", "model", "content", "content[].type", "content[].text", "stop_reason", "usage",
        "usage.input_tokens", "usage.output_tokens",
    },
    ("/v1/messages", True): {
        "content_block", "content_block.text", "content_block.type", "delta", "delta.stop_reason", "delta.text",
        "delta.type", "index", "message", "message.content", "message.id", "message.model", "message.role",
        "message.type", "message.usage", "message.usage.input_tokens", "message.usage.output_tokens", "type", "usage",
        "usage.input_tokens", "usage.output_tokens",
    },
}  # fmt: skip
"""Those of recorded replies of Ollama 0.24.0; a stream's are those of all of its events."""

LACKING = {"completed_at", "error", "prompt_cache_key", "safety_identifier", "store"}
"""Keys of Ollama's responses that vLLM's have not: none of them says anything that was not known."""


def paths(value: Any, prefix: str = "") -> set[str]:
    """The paths of all keys in a JSON value."""
    if isinstance(value, dict):
        return {prefix + key for key in value}.union(*(paths(item, f"{prefix}{key}.") for key, item in value.items()))
    if isinstance(value, list) and prefix:
        return set().union(*(paths(item, f"{prefix[:-1]}[].") for item in value))
    return set()


@pytest.mark.parametrize(("path", "stream"), OLLAMA_S_KEYS)
def test_replies_have_all_keys_that_ollama_s_have(server: Server, path: str, *, stream: bool) -> None:
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "stream": stream, "messages": MESSAGES, "max_tokens": 9}
    if "completions" in path:
        asked |= {"prompt": QUESTION, "stream_options": {"include_usage": True}}
    if path == "/v1/responses":
        asked = {"model": MODEL, "temperature": 0, "stream": stream, "input": QUESTION, "max_output_tokens": 9}
    reply = server.post(path, asked)
    assert reply.status_code == 200, reply.text
    events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")] if stream else [reply.text]
    found = set().union(*(paths(json.loads(event)) for event in events))
    assert OLLAMA_S_KEYS[path, stream] - found == set()
    assert not {key for key in found if key.rpartition(".")[2] in LACKING}
