"""vLLM's own routes, serving the model that each request names and not only the one of the command line.

Several of our models can share a worker, and Ollama's clients expect behaviour that vLLM lacks. The gateway sends the
details in a header (vllama.protocol.model_header); this module makes vLLM apply it. Written against vLLM 0.26 and 0.32
(`tests/worker/test_vllm_routes.py` names them). Only this file uses these internals of vLLM:
`OpenAIServingModels.model_name`, the attribute `chat_template` of _RENDERERS, `_maybe_get_adapters` of _GENERATORS,
`AnthropicServingMessages`' conversion to a chat request, `build_tok_params` of the request classes, the attributes
_PARSERS of _GENERATORS, `TokenizeParams.get_encode_kwargs`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import fields
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.renderers import TokenizeParams

from vllama.asgi import Receive, Scope, Send
from vllama.errors import VllamaError
from vllama.protocol.model_header import ModelHeader
from vllama.worker.adapters import Adapters
from vllama.worker.counting import Counter
from vllama.worker.cut_calls import give_empty_inputs, say_stop_without_calls
from vllama.worker.sink import HttpSink
from vllama.worker.streamed_items import keep_ids
from vllama.worker.trimming_parsers import trimming
from vllama.worker.untagged_parsers import reading_untagged_calls

_spoken: ContextVar[ModelHeader | None] = ContextVar("spoken", default=None)
_adapter: ContextVar[Any] = ContextVar("adapter", default=None)

_CONVERSIONS = ("to_chat_completion_request", "_convert_anthropic_to_openai_request")
"""The name in 0.32, and in 0.26."""

_RENDERERS = (
    "online_renderer",
    "serving_tokenization",
    "openai_serving_chat",
    "openai_serving_responses",
    "anthropic_serving_messages",
)
"""What in `app.state` has a `chat_template` of its own; which of them a route asks changes between versions."""


_GENERATORS = (
    "openai_serving_chat",
    "openai_serving_completion",
    "openai_serving_responses",
    "anthropic_serving_messages",
    "serving_structured_decisions",
)
"""What in `app.state` asks the engine for text, and chooses the LoRA adapter for it."""

_CHATS = ("openai_serving_chat", "anthropic_serving_messages")
"""What in `app.state` makes replies of chats that are not streamed."""

_PARSERS = ("parser_cls", "parser")
"""Where chats and responses have the class of their parser."""


class HeedHeader:
    """ASGI middleware: the header holds for all that happens within its request."""

    def __init__(self, app: Any, adapters: Adapters) -> None:
        self._app = app
        self._adapters = adapters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the header, load the model's adapter into the engine, and handle the request."""
        if scope["type"] == "http":
            spoken = ModelHeader.from_headers(scope["headers"])
            try:
                _adapter.set(await self._adapters.load(spoken.adapter if spoken else None))
            except VllamaError as error:
                await HttpSink(send).fail(error)
                return
            _spoken.set(spoken)
            if spoken is not None and spoken.is_counted:
                counter = Counter()
                counter.start()
                send = counter.sending(send)
        await self._app(scope, receive, send)


def heed(state: Any) -> None:
    """Make the routes whose handlers are in vLLM's `app.state` heed what their requests say."""
    _repeat_names(state.openai_serving_models)
    for name in _RENDERERS:
        if served := getattr(state, name, None):
            _use_templates(served)
    for name in _GENERATORS:
        if served := getattr(state, name, None):
            _use_adapters(served)
            _adapt_parsers(served)
    for name in _CHATS:
        if served := getattr(state, name, None):
            say_stop_without_calls(served)
    if messages := getattr(state, "anthropic_serving_messages", None):
        _add_sampling(messages)
        give_empty_inputs(messages)
    if responses := getattr(state, "openai_serving_responses", None):
        keep_ids(responses)
    _end_when_full(ChatCompletionRequest, "max_tokens", "max_completion_tokens")
    _end_when_full(CompletionRequest, "max_tokens")
    _end_when_full(ResponsesRequest, "max_output_tokens")


def _repeat_names(models: Any) -> None:
    """Let replies name the model as the client did; vLLM takes the first served name."""
    first_name = models.model_name

    def model_name(lora_request: Any = None) -> str:
        spoken = _spoken.get()
        return spoken.name if spoken else first_name(lora_request)

    models.model_name = model_name


def _use_templates(served: Any) -> None:
    """Let the object's default chat template be the request's model's."""
    started_with = served.chat_template

    def chat_template(_: Any) -> str | None:
        spoken = _spoken.get()
        return (spoken.chat_template if spoken else "") or started_with

    kind = type(served)
    served.__class__ = type(kind.__name__, (kind,), {"chat_template": property(chat_template)})


def _use_adapters(served: Any) -> None:
    """Let the object's requests be answered with the request's model's adapter."""
    of_vllm = served._maybe_get_adapters  # noqa: SLF001

    def adapter_of(*arguments: Any, **named: Any) -> Any:
        return _adapter.get() or of_vllm(*arguments, **named)

    served._maybe_get_adapters = adapter_of  # noqa: SLF001


def _adapt_parsers(served: Any) -> None:
    """Let the object's parsers read calls without tags, and remove white space as Ollama does."""
    for attribute in _PARSERS:
        if parser_class := getattr(served, attribute, None):
            setattr(served, attribute, trimming(reading_untagged_calls(parser_class)))


def _add_sampling(messages: Any) -> None:
    """Let Anthropic's requests have the values for which that API has no field."""
    conversion = next(name for name in _CONVERSIONS if hasattr(messages, name))
    convert: Callable[..., ChatCompletionRequest] = getattr(messages, conversion)

    def converted(*arguments: Any, **named: Any) -> ChatCompletionRequest:
        request = convert(*arguments, **named)
        spoken = _spoken.get()
        for name, value in (spoken.sampling if spoken else {}).items():
            setattr(request, name, value)
        return request

    setattr(messages, conversion, converted)


def _end_when_full(request_class: Any, *limits: str) -> None:
    """Let a reply end when the context is full, where vLLM refuses a limit that there might be no room for."""
    build = request_class.build_tok_params

    def build_tok_params(request: Any, model_config: Any) -> Any:
        least = {name: 1 for name in limits if getattr(request, name) is not None}
        params = build(request.model_copy(update=least) if least else request, model_config)
        if _spoken.get() is None or params.truncate_prompt_tokens is not None:
            return params
        return _CountsAll(**{field.name: getattr(params, field.name) for field in fields(params) if field.init})

    request_class.build_tok_params = build_tok_params


class _CountsAll(TokenizeParams):  # type: ignore[misc]
    """Parameters with which the refusal of a prompt that is too long names its real length.

    Clients learn from it how much to cut. vLLM stops counting one token beyond the limit; texts of more characters
    than the limit's longest tokens are refused before they are counted.
    """

    def get_encode_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the tokenizer."""
        return {**super().get_encode_kwargs(), "truncation": False, "max_length": None}
