"""The parts of vLLM that `vllama/worker/pooling.py` uses, in the vLLM that is installed; no engine starts here."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from vllama.errors import EngineError, RequestError, WorkerDied

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]


def of_vllm(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"vllm.{module}"), name)


def test_the_engine_client_encodes_as_the_adapter_calls_it() -> None:
    client = of_vllm("engine.protocol", "EngineClient")
    assert list(inspect.signature(client.encode).parameters)[:4] == ["self", "prompt", "pooling_params", "request_id"]
    assert inspect.iscoroutinefunction(client.get_supported_tasks)


def test_the_renderer_has_defaults_of_which_the_length_can_be_replaced() -> None:
    renderer = of_vllm("renderers", "BaseRenderer")
    assert hasattr(renderer, "default_cmpl_tok_params")
    parameters = of_vllm("renderers", "TokenizeParams")(max_total_tokens=5, truncate_prompt_tokens=5)
    assert parameters.get_encode_kwargs() == {"truncation": True, "max_length": 5, "add_special_tokens": True}


def test_tokenizers_say_how_many_special_tokens_they_add() -> None:
    assert hasattr(of_vllm("tokenizers", "TokenizerLike"), "num_special_tokens_to_add")


def test_the_activation_of_an_embedding_can_be_left_out() -> None:
    params = of_vllm("pooling_params", "PoolingParams")(task="embed", use_activation=False)
    config: Any = SimpleNamespace(pooler_config=None)
    params.verify(config)
    assert (params.task, params.use_activation) == ("embed", False)


class Client:
    """An EngineClient that gives these outputs, or raises."""

    model_config = SimpleNamespace(max_model_len=256)

    def __init__(self, *outputs: Any) -> None:
        self._outputs = outputs
        self.renderer = self
        self.default_cmpl_tok_params = of_vllm("renderers", "TokenizeParams")(
            max_total_tokens=256, do_lower_case=True, add_special_tokens=True
        )
        self.asked: list[Any] = []

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(
            num_special_tokens_to_add=lambda: 2,
            max_chars_per_token=10,
            encode=lambda text, add_special_tokens: [8, 5, 9] if add_special_tokens else [5],
            convert_ids_to_tokens=lambda ids: [f"<{number}>" for number in ids],
        )

    async def render_cmpl_async(self, prompts: Sequence[Any], params: Any) -> list[Any]:
        self.asked.append(params)
        return [{"prompt_token_ids": [1], **prompt} for prompt in prompts]

    async def encode(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
        self.asked.append((prompt, params.task, params.use_activation, request_id))
        for output in self._outputs:
            if isinstance(output, Exception):
                raise output
            yield output


def engine(*outputs: Any) -> tuple[Client, Any]:
    client = Client(*outputs)
    return client, importlib.import_module("vllama.worker.pooling").PoolingEngine(client)


def output(tensor: Any, **more: Any) -> Any:
    return SimpleNamespace(outputs=SimpleNamespace(data=tensor), finished=True, **more)


def test_a_vector_comes_as_float32_whatever_the_model_computes_in() -> None:
    torch = importlib.import_module("torch")
    client, adapter = engine(output(torch.tensor([0.5, -2.0], dtype=torch.bfloat16)))
    vector = asyncio.run(adapter.encode({"prompt_token_ids": [1]}, "name"))
    assert (str(vector.dtype), vector.tolist()) == ("float32", [0.5, -2.0])
    assert client.asked == [({"prompt_token_ids": [1]}, "embed", False, "name")]
    assert (adapter.context_length, adapter.special_tokens) == (256, 2)


@pytest.mark.parametrize("limit", [None, 7])
def test_texts_are_cut_at_the_limit_and_otherwise_tokenised_as_vllm_would(limit: int | None) -> None:
    client, adapter = engine()
    prompts = asyncio.run(adapter.tokenize(["a", "b"], limit))
    assert [prompt["prompt"] for prompt in prompts] == ["a", "b"]
    (params,) = client.asked
    assert (params.max_total_tokens, params.truncate_prompt_tokens, params.do_lower_case) == (limit, limit, True)


def test_special_tokens_that_a_text_has_already_are_not_added_again() -> None:
    _, adapter = engine()
    prompts = asyncio.run(adapter.tokenize(["<8>a<9>"], None))
    assert [prompt["prompt"] for prompt in prompts] == ["a"]


def test_what_goes_wrong_in_the_engine_comes_in_our_terms() -> None:
    dead = of_vllm("v1.engine.exceptions", "EngineDeadError")()
    failed = output(None, error=SimpleNamespace(message="no memory", retryable=False))
    for raised, kind in ((dead, WorkerDied), (ValueError("bad"), RequestError), (failed, EngineError)):
        _, adapter = engine(raised)
        with pytest.raises(kind):
            asyncio.run(adapter.encode({}, "name"))


def test_of_a_text_that_is_much_too_long_only_the_beginning_is_tokenised() -> None:
    _, adapter = engine()
    short, long = asyncio.run(adapter.tokenize(["x" * 4000, "y" * 10**7], None))
    assert len(short["prompt"]) == 4000
    assert 257 * 10 < len(long["prompt"]) < 10**5
