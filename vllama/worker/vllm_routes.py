"""vLLM's own routes, serving the model that each request names and not only the one of the command line.

Several of our models can share a worker, and Ollama's clients expect habits that vLLM lacks. The gateway says what is
needed in a header (vllama.worker.spoken); here vLLM learns to heed it. Written against vLLM 0.26 and 0.32
(`tests/worker/test_vllm_routes.py` names them). Internal, and kept to this file: `OpenAIServingModels.model_name`,
the attribute `chat_template` of _RENDERERS, `_maybe_get_adapters` of _GENERATORS, `AnthropicServingMessages`'
conversion to a chat request, `build_tok_params` of the request classes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from vllama.asgi import Receive, Scope, Send
from vllama.errors import VllamaError
from vllama.worker.adapters import Adapters
from vllama.worker.sink import HttpSink
from vllama.worker.spoken import SpokenModel

_spoken: ContextVar[SpokenModel | None] = ContextVar("spoken", default=None)
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
)
"""What in `app.state` asks the engine for text, and chooses the LoRA adapter for it."""


class HeedHeader:
    """ASGI middleware: the header holds for all that happens within its request."""

    def __init__(self, app: Any, adapters: Adapters) -> None:
        self._app = app
        self._adapters = adapters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note the header, have the engine read the model's adapter, and go on."""
        if scope["type"] == "http":
            spoken = SpokenModel.from_headers(scope["headers"])
            try:
                _adapter.set(await self._adapters.load(spoken.adapter if spoken else None))
            except VllamaError as error:
                await HttpSink(send).fail(error)
                return
            _spoken.set(spoken)
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
    if messages := getattr(state, "anthropic_serving_messages", None):
        _add_sampling(messages)
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
        return build(request.model_copy(update=least) if least else request, model_config)

    request_class.build_tok_params = build_tok_params
