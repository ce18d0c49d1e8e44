"""The parts of vLLM 0.26 and 0.32 that `vllama/worker/vllm_routes.py` changes, in the vLLM that is installed.

No engine starts here. Where one of these fails after an upgrade, that adapter is the file to change.
"""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import State

from vllama.errors import RequestError
from vllama.protocol.model_header import ModelHeader
from vllama.protocol.profile import AdapterPart

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]


def of_vllm(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"vllm.{module}"), name)


class Messages:
    """Anthropic's handler, with vLLM's own conversion."""

    def __init__(self) -> None:
        self.own = of_vllm("entrypoints.anthropic.serving", "AnthropicServingMessages")
        self.chat_template = "started with"

    def to_chat_completion_request(self, request: Any) -> Any:
        name = next(name for name in adapter()._CONVERSIONS if hasattr(self.own, name))
        return getattr(self.own, name)(request)

    def _maybe_get_adapters(self, *_: Any, **__: Any) -> str:
        return "vLLM's own"

    async def chat_completion_full_generator(self, *_: Any) -> Any:
        return None

    def messages_full_converter(self, reply: Any) -> Any:
        return reply


def adapter() -> Any:
    return importlib.import_module("vllama.worker.vllm_routes")


@pytest.fixture
def state() -> State:
    models = SimpleNamespace(model_name=lambda lora_request=None: f"first {lora_request}")
    renderer = type("Renderer", (), {})()
    renderer.chat_template = None
    handlers = {"online_renderer": renderer, "anthropic_serving_messages": Messages(), "openai_serving_chat": None}
    return State({"openai_serving_models": models, **handlers})


@pytest.fixture(autouse=True)
def _unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a test does to vLLM's classes."""
    for name in ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest"):
        kind = getattr(adapter(), name)
        monkeypatch.setattr(kind, "build_tok_params", kind.build_tok_params)


class Adapters:
    """What an engine makes of adapters, without one."""

    async def load(self, adapter: AdapterPart | None) -> Any:
        if adapter is not None and not adapter.path:
            raise RequestError("vLLM cannot serve it")
        return adapter and f"loaded {adapter.digest}"


async def within(spoken: ModelHeader | None, look: Any) -> Any:
    """What `look` sees in a request that says this."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(look())

    headers = [(b"host", b"x"), *([spoken.to_header()] if spoken else [])]
    await adapter().HeedHeader(app, Adapters())({"type": "http", "headers": headers}, None, None)
    return seen[0]


@pytest.mark.anyio
async def test_replies_name_the_model_as_the_client_did(state: State) -> None:
    adapter().heed(state)
    named = state.openai_serving_models.model_name
    assert await within(ModelHeader("M:x"), named) == "M:x"
    assert await within(ModelHeader("M:x"), lambda: named("an adapter")) == "M:x"
    assert await within(None, named) == "first None"


@pytest.mark.anyio
async def test_texts_are_made_with_the_adapter_of_the_request_s_model(state: State) -> None:
    adapter().heed(state)

    def asked() -> Any:
        return state.anthropic_serving_messages._maybe_get_adapters("request", supports_default_mm_loras=True)

    assert await within(ModelHeader("m", adapter=AdapterPart(1, "abc", "/a")), asked) == "loaded abc"
    assert await within(ModelHeader("m"), asked) == "vLLM's own"
    assert await within(None, asked) == "vLLM's own"


@pytest.mark.anyio
async def test_an_adapter_that_the_engine_refuses_ends_the_request() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pytest.fail("the request went on")

    async def send(message: Any) -> None:
        sent.append(message)

    header = ModelHeader("m", adapter=AdapterPart(1, "abc", "")).to_header()
    await adapter().HeedHeader(app, Adapters())({"type": "http", "headers": [header]}, None, send)
    assert (sent[0]["status"], sent[1]["body"]) == (400, b'{"error":"vLLM cannot serve it"}')


@pytest.mark.anyio
async def test_the_default_template_is_the_request_s_model_s(state: State) -> None:
    adapter().heed(state)
    for served, started_with in (
        (state.online_renderer, None),
        (state.anthropic_serving_messages, "started with"),
    ):
        assert await within(ModelHeader("m", "{{ x }}"), lambda served=served: served.chat_template) == "{{ x }}"
        assert await within(ModelHeader("m"), lambda served=served: served.chat_template) == started_with


@pytest.mark.anyio
async def test_anthropic_s_requests_get_the_sampling_that_their_api_lacks(state: State) -> None:
    adapter().heed(state)
    request = of_vllm("entrypoints.anthropic.protocol", "AnthropicMessagesRequest")(
        model="m", max_tokens=3, messages=[{"role": "user", "content": "hi"}]
    )
    spoken = ModelHeader("m", sampling={"min_p": 0.25, "seed": 7, "repetition_penalty": 1.5})
    made = await within(spoken, lambda: state.anthropic_serving_messages.to_chat_completion_request(request))
    assert (made.min_p, made.seed, made.repetition_penalty, made.max_tokens) == (0.25, 7, 1.5, 3)


@pytest.mark.parametrize(
    ("module", "name", "fields"),
    [
        ("chat_completion", "ChatCompletionRequest", {"messages": [], "max_tokens": 5000}),
        ("chat_completion", "ChatCompletionRequest", {"messages": [], "max_completion_tokens": 5000}),
        ("completion", "CompletionRequest", {"prompt": "x", "max_tokens": 5000}),
        ("responses", "ResponsesRequest", {"input": "x", "max_output_tokens": 5000}),
    ],
)
def test_a_limit_above_the_context_is_no_error(state: State, module: str, name: str, fields: dict[str, Any]) -> None:
    adapter().heed(state)
    request = of_vllm(f"entrypoints.openai.{module}.protocol", name)(**fields)
    parameters = request.build_tok_params(SimpleNamespace(max_model_len=100, is_encoder_decoder=False))
    assert parameters.max_total_tokens == 100
    assert parameters.max_input_tokens >= 99
    assert {getattr(request, limit) for limit in fields.keys() & {"max_tokens", "max_completion_tokens"}} <= {5000}


@pytest.mark.anyio
async def test_a_prompt_beyond_the_context_is_counted_to_its_end(state: State) -> None:
    adapter().heed(state)
    kind = of_vllm("entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest")
    model_config = SimpleNamespace(max_model_len=100, is_encoder_decoder=False)

    async def encoding(spoken: ModelHeader | None, **fields: Any) -> Any:
        request = kind(messages=[], **fields)
        return (await within(spoken, lambda: request.build_tok_params(model_config))).get_encode_kwargs()

    counted = await encoding(ModelHeader("m"))
    assert (counted["truncation"], counted["max_length"]) == (False, None)
    assert (await encoding(None))["max_length"] == 101
    assert (await encoding(ModelHeader("m"), truncate_prompt_tokens=7))["max_length"] == 7


@pytest.mark.anyio
async def test_the_parsers_of_chats_and_responses_remove_white_space(state: State) -> None:
    kind = type("Parser", (), {"tool_parser_cls": None})
    for name, attribute in (("openai_serving_chat", "parser_cls"), ("openai_serving_responses", "parser")):
        handler = Messages()
        setattr(handler, attribute, kind)
        setattr(handler, "responses_stream_generator", None)  # noqa: B010 - no handler of vLLM lacks it
        setattr(state, name, handler)
    adapter().heed(state)
    for trimming in (state.openai_serving_chat.parser_cls, state.openai_serving_responses.parser):
        assert trimming is not kind
        assert issubclass(trimming, kind)


def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_the_gateway_knows() -> None:
    from vllama.gateway.refusal import Overflow, Refused

    parameters = adapter().TokenizeParams(max_total_tokens=10, max_output_tokens=0)
    tokenizer = SimpleNamespace(max_chars_per_token=5)
    for check, prompt, expected in (
        (parameters._token_len_check, [1] * 12, Overflow(12, 10)),
        (parameters._text_len_check, "x" * 100, Overflow(20, 10)),
    ):
        with pytest.raises(Exception, match="maximum context length") as refused:
            check(tokenizer, prompt)
        assert Refused(400, b'{"error":{"message":"%b"}}' % str(refused.value).encode()).overflow == expected


def test_vllm_has_what_the_adapter_changes() -> None:
    models = of_vllm("entrypoints.openai.models.serving", "OpenAIServingModels")
    assert list(inspect.signature(models.model_name).parameters) == ["self", "lora_request"]
    messages = of_vllm("entrypoints.anthropic.serving", "AnthropicServingMessages")
    assert any(hasattr(messages, name) for name in adapter()._CONVERSIONS)
    serving = of_vllm("entrypoints.serve.engine.serving", "BaseServing")
    parameters = list(inspect.signature(serving._maybe_get_adapters).parameters)
    assert parameters == ["self", "request", "supports_default_mm_loras"]
    for module, name in (
        ("chat_completion", "OpenAIServingChat"),
        ("completion", "OpenAIServingCompletion"),
        ("responses", "OpenAIServingResponses"),
    ):
        kind = of_vllm(f"entrypoints.openai.{module}.serving", name)
        assert issubclass(kind, serving)
        assert "self._maybe_get_adapters(" in inspect.getsource(importlib.import_module(kind.__module__))
    assert issubclass(of_vllm("entrypoints.anthropic.serving", "AnthropicServingMessages"), serving)
    for module, name in (
        ("renderers.online_renderer", "OnlineRenderer"),
        ("entrypoints.serve.tokenize.serving", "ServingTokenization"),
        ("entrypoints.openai.chat_completion.serving", "OpenAIServingChat"),
        ("entrypoints.openai.responses.serving", "OpenAIServingResponses"),
    ):
        assert "self.chat_template = chat_template" in inspect.getsource(of_vllm(module, name).__init__)


def test_a_dead_engine_speaks_the_words_that_the_gateway_knows() -> None:
    from vllama.gateway.refusal import Refused

    error = of_vllm("v1.engine.exceptions", "EngineDeadError")()
    assert Refused(500, b'{"error":{"message":"%b"}}' % str(error).encode()).engine_is_dead
