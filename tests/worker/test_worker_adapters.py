"""Adapters are read into the engine once each, before the first request that uses them."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest

from vllama.errors import EngineError, RequestError, WorkerDied
from vllama.protocol.profile import AdapterPart

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore"),
]

ONE, TWO = AdapterPart(1, "a" * 64, "/store/one"), AdapterPart(2, "b" * 64, "/store/two")


class Client:
    """An EngineClient that notes what it reads."""

    def __init__(self) -> None:
        self.read: list[Any] = []
        self.error: Exception | None = None

    async def add_lora(self, request: Any) -> bool:
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        self.read.append((request.lora_name, request.lora_int_id, request.lora_path))
        return True


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def adapters(client: Client) -> Any:
    made = importlib.import_module("vllama.worker.adapters").Adapters()
    made.serve(client)
    return made


async def test_each_is_read_once_under_its_number_and_a_name_of_its_own(adapters: Any, client: Client) -> None:
    first, again, other = await asyncio.gather(adapters.load(ONE), adapters.load(ONE), adapters.load(TWO))
    assert first == again != other
    assert client.read == [("a" * 64, 1, "/store/one"), ("b" * 64, 2, "/store/two")]
    assert await adapters.load(ONE) == first
    assert len(client.read) == 2


async def test_weights_as_they_are_need_none(adapters: Any, client: Client) -> None:
    assert await adapters.load(None) is None
    assert client.read == []


async def test_what_vllm_refuses_is_told_without_our_paths_and_asked_again(adapters: Any, client: Client) -> None:
    client.error = Exception("Call to add_lora method failed: /store/one/x is wrong")
    with pytest.raises(RequestError, match=r"^vLLM cannot serve the model's adapter: x is wrong$"):
        await adapters.load(ONE)
    client.error = None
    assert (await adapters.load(ONE)).lora_int_id == 1


async def test_a_dead_engine_is_no_fault_of_the_adapter(adapters: Any, client: Client) -> None:
    client.error = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError()
    with pytest.raises(WorkerDied):
        await adapters.load(ONE)


async def test_before_there_is_an_engine_there_is_an_error() -> None:
    with pytest.raises(EngineError, match="not ready"):
        await importlib.import_module("vllama.worker.adapters").Adapters().load(ONE)
