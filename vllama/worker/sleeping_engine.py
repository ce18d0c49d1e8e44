"""The part of vLLM that sleeps, in one small adapter.

Written against vLLM 0.26 and 0.32 (`tests/worker/test_sleeping_engine.py` names them). Public: `EngineClient.sleep`,
`wake_up` and `is_sleeping`, `ModelConfig.enable_sleep_mode` and `max_logprobs`, `SamplingParams`, `PoolingParams`.
Internal, and kept to this file: `AsyncLLM.output_processor.get_num_unfinished_requests`
(`vllm/v1/engine/output_processor.py`), `vllm.platforms.current_platform.is_cpu`.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import count
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.platforms import current_platform
from vllm.pooling_params import PoolingParams
from vllm.renderers import TokenizeParams
from vllm.sampling_params import RequestOutputKind, SamplingParams

from vllama.worker.engine_errors import as_our_error
from vllama.worker.sleeping import Canary

_PROMPT = "The first ten prime numbers are 2, 3, 5,"
_TOKENS = 8
_ALTERNATIVES = 20
_VECTOR = 256
"""Elements of a vector that are compared."""

_WITHOUT_LIMIT = TokenizeParams(max_total_tokens=None, add_special_tokens=True)
_POOLING_TASKS = ("embed", "classify")


class SleepingEngine:
    """One model on a running engine, as `vllama.worker.sleeping.Sleeper` wants it."""

    _numbers = count(1)

    def __init__(self, client: EngineClient, tasks: Collection[str]) -> None:
        """Take the client and what it can do: vLLM's supported tasks."""
        self._client = client
        self._pooling_task = next((task for task in _POOLING_TASKS if task in tasks), "")
        self._generates = "generate" in tasks

    @property
    def refusal(self) -> str:
        """Why it cannot sleep; "" where it can."""
        if current_platform.is_cpu():
            return "vLLM cannot sleep on a CPU"
        if not self._client.model_config.enable_sleep_mode:
            return "the worker was started without --enable-sleep-mode"
        return ""

    @property
    def unfinished(self) -> int:
        """How many requests this API server process has in the engine."""
        return int(self._client.output_processor.get_num_unfinished_requests())

    async def is_asleep(self) -> bool:
        """Whether it sleeps."""
        return bool(await self._client.is_sleeping())

    async def sleep(self) -> None:
        """Move the weights to the host's memory; vLLM empties its caches with the KV cache.

        Requests of other API server processes end before, and none is aborted.
        """
        await self._client.sleep(1, "wait")

    async def wake(self) -> None:
        """Take weights and KV cache back."""
        await self._client.wake_up()

    async def canary(self) -> Canary:
        """Answer the fixed prompt: with tokens, or with the vector of a model that makes no text."""
        try:
            (prompt,) = await self._client.renderer.render_cmpl_async([{"prompt": _PROMPT}], _WITHOUT_LIMIT)
            name = f"vllama-canary-{next(self._numbers)}"
            return await (self._tokens(prompt, name) if self._generates else self._vector(prompt, name))
        except Exception as error:
            raise as_our_error(error) from error

    async def _tokens(self, prompt: Any, name: str) -> Canary:
        most = int(self._client.model_config.max_logprobs)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=_TOKENS,
            ignore_eos=True,
            logprobs=_ALTERNATIVES if most < 0 else min(_ALTERNATIVES, most),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        *_, output = [output async for output in self._client.generate(prompt, params, name)]
        (answer,) = output.outputs
        rows = zip(answer.token_ids, answer.logprobs, strict=True)
        return Canary(
            steps=tuple((token, {known: float(entry.logprob) for known, entry in row.items()}) for token, row in rows)
        )

    async def _vector(self, prompt: Any, name: str) -> Canary:
        params = PoolingParams(task=self._pooling_task)
        *_, output = [output async for output in self._client.encode(prompt, params, name)]
        numbers = output.outputs.data.detach().float().cpu().reshape(-1)[:_VECTOR].tolist()
        return Canary(vector=tuple(numbers))
