"""The LoRA adapters of a running engine: each is read into it once, before the first request that uses it.

An adapter that the engine met only in a step of its own, and could not read, would end it. Written against vLLM 0.26
and 0.32 (`tests/worker/test_engine_adapter.py` names them). Public: `EngineClient.add_lora`, `LoRARequest`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

from vllm.lora.request import LoRARequest

from vllama.errors import EngineError, RequestError, WorkerDied
from vllama.protocol.profile import AdapterPart
from vllama.worker.engine_errors import as_our_error

log = logging.getLogger(__name__)

_FAILURE = re.compile(r"Call to \w+ method failed: (.*)", re.DOTALL)


class Adapters:
    """The adapters of one engine; call `serve` before the first request."""

    def __init__(self) -> None:
        self._client: Any = None
        self._loaded: dict[str, LoRARequest] = {}
        self._turn = asyncio.Lock()

    def serve(self, client: Any) -> None:
        """Take vLLM's EngineClient."""
        self._client = client

    async def load(self, adapter: AdapterPart | None) -> LoRARequest | None:
        """Return what vLLM needs with a request of this adapter, once the engine has it.

        Raises RequestError where vLLM refuses the adapter, EngineError, WorkerDied.
        """
        if adapter is None:
            return None
        if (loaded := self._loaded.get(adapter.digest)) is not None:
            return loaded
        if self._client is None:
            raise EngineError("the engine is not ready; try again")
        # vLLM tells adapters apart by name where it looks for prompts that it has computed before.
        request = LoRARequest(adapter.digest, adapter.number, adapter.path)
        async with self._turn:
            if adapter.digest not in self._loaded:
                await self._add(request)
                self._loaded[adapter.digest] = request
        return request

    async def _add(self, request: LoRARequest) -> None:
        try:
            await self._client.add_lora(request)
        except Exception as error:
            ours = as_our_error(error)
            if isinstance(ours, WorkerDied):
                raise ours from error
            log.exception("cannot serve the adapter in %s", request.lora_path)
            told = _FAILURE.search(str(error))
            message = f"vLLM cannot serve the model's adapter: {told[1] if told else error}"
            raise RequestError(message.replace(f"{request.lora_path}/", "")) from error
