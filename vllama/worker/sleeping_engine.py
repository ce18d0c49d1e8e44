"""The part of vLLM that sleeps, in one small adapter.

Written against vLLM 0.26 to 0.33 (`tests/worker/test_sleeping_engine.py` names them). Public: `EngineClient.sleep`,
`wake_up` and `is_sleeping`, `AsyncLLM.collective_rpc`, `ModelConfig.enable_sleep_mode`, `--worker-extension-cls`.
Internal, and kept to this file: `AsyncLLM.output_processor.get_num_unfinished_requests`
(`vllm/v1/engine/output_processor.py`), `AsyncLLM.vllm_config`, `vllm.platforms.current_platform.is_cpu`.
"""

from __future__ import annotations

from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.platforms import current_platform

from vllama.protocol.sleep import WORKER_EXTENSION


class SleepingEngine:
    """One model on a running engine, as `vllama.worker.sleeping.Sleeper` wants it."""

    def __init__(self, client: EngineClient) -> None:
        self._client: Any = client

    @property
    def refusal(self) -> str:
        """The reason why it cannot sleep; "" if it can."""
        if current_platform.is_cpu():
            return "vLLM cannot sleep on a CPU"
        if not self._client.model_config.enable_sleep_mode:
            return "the worker was started without --enable-sleep-mode"
        return ""

    @property
    def unfinished(self) -> int:
        """The number of this API server process's requests in the engine."""
        return int(self._client.output_processor.get_num_unfinished_requests())

    async def is_asleep(self) -> bool:
        """Return whether it sleeps."""
        return bool(await self._client.is_sleeping())

    async def prepare(self) -> None:
        """Begin to copy the weights to the host's memory, in a thread of each worker process."""
        await self._tell_workers("begin_host_copy")

    async def sleep(self) -> None:
        """Move the weights to the host's memory; vLLM empties its caches with the KV cache.

        Requests of other API server processes end before, and none is aborted.
        """
        await self._client.sleep(1, "wait")

    async def wake(self, *, keeps_copy: bool) -> None:
        """Take weights and KV cache back. Raises what vLLM raises where the weights are not what they were."""
        await self._client.wake_up()
        if not keeps_copy:
            await self.forget_copy()

    async def forget_copy(self) -> None:
        """Give up the host's copy of the weights."""
        await self._tell_workers("forget_host_copy")

    async def _tell_workers(self, method: str) -> None:
        """Call a method of `vllama.worker.sleep_backend.SleepExtension`, unless the user's own one is in its place."""
        if self._client.vllm_config.parallel_config.worker_extension_cls == WORKER_EXTENSION:
            await self._client.collective_rpc(method)
