"""The sleep backend, with an allocator whose memory is the CPU's; scripts/switching shows it on a GPU."""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vllama.protocol.sleep import WORKER_EXTENSION

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

MIB = 1024**2


class Allocator:
    """Maps and unmaps as vLLM's `CuMemAllocator` does: what is not saved is lost."""

    def __init__(self) -> None:
        self.memory = {address: torch.zeros(2 * MIB, dtype=torch.uint8) for address in range(4)}
        tags = ("weights", "weights", "kv_cache", "runtime")
        self.pointer_to_data = {
            address: SimpleNamespace(handle=(0, 2 * MIB, address, 0), tag=tag, is_asleep=False)
            for address, tag in enumerate(tags)
        }

    def sleep(self, offload_tags: tuple[str, ...]) -> None:
        assert offload_tags == ()
        for address, data in self.pointer_to_data.items():
            self.memory[address].fill_(255)
            data.is_asleep = True

    def wake_up(self, tags: list[str] | None) -> None:
        for data in self.pointer_to_data.values():
            if tags is None or data.tag in tags or data.tag == "runtime":
                data.is_asleep = False


@pytest.fixture(scope="module")
def adapter() -> ModuleType:
    return importlib.import_module("vllama.worker.sleep_backend")


@pytest.fixture
def allocator() -> Allocator:
    return Allocator()


@pytest.fixture
def backend(adapter: ModuleType, allocator: Allocator, monkeypatch: pytest.MonkeyPatch) -> Any:
    copies = importlib.import_module("vllama.worker.host_copies").HostCopies
    monkeypatch.setattr("vllm.device_allocator.get_mem_allocator_instance", lambda: allocator)
    monkeypatch.setattr("vllama.worker.host_copies.HostCopies", lambda *, pinned: copies(pinned=False))
    monkeypatch.setattr(adapter, "_content", lambda address, size: allocator.memory[address])
    monkeypatch.setattr(adapter, "_own_stream", torch.no_grad)
    return adapter.KeptWeightsBackend()


def fill(allocator: Allocator) -> list[Any]:
    for address, content in allocator.memory.items():
        content.copy_(torch.arange(2 * MIB) % (address + 3))
    return [content.clone() for content in allocator.memory.values()]


def test_weights_and_what_runs_come_back_and_the_kv_cache_does_not(backend: Any, allocator: Allocator) -> None:
    before = fill(allocator)
    backend.suspend()
    assert backend.state() == "SUSPENDED"
    backend.resume()
    assert backend.state() == "RUNNING"
    same = [torch.equal(one, other) for one, other in zip(allocator.memory.values(), before, strict=True)]
    assert same == [True, True, False, True]


def test_what_has_not_changed_is_copied_out_once(
    backend: Any, allocator: Allocator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fill(allocator)
    backend.suspend()
    backend.resume()
    allocator.memory[3][5] += 1
    backend.suspend()
    copied = [record.getMessage().split()[1] for record in caplog.records if "copied to the host" in record.message]
    assert copied == ["6", "2"]


def test_a_byte_that_changes_while_it_sleeps_is_found(backend: Any, allocator: Allocator) -> None:
    fill(allocator)
    backend.suspend()
    backend._copies._copies[1].pieces[0][777] ^= 16
    with pytest.raises(RuntimeError, match="1 allocations of weights changed while the model slept"):
        backend.resume()


def test_only_the_tags_that_are_asked_for_come_back_first(backend: Any, allocator: Allocator) -> None:
    before = fill(allocator)
    backend.suspend()
    backend.resume(["kv_cache"])
    assert not torch.equal(allocator.memory[0], before[0])
    backend.resume(["weights"])
    assert torch.equal(allocator.memory[0], before[0])


def test_a_copy_that_was_begun_while_it_serves_saves_that_of_the_sleep(
    backend: Any, allocator: Allocator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    before = fill(allocator)
    backend.begin_copy()
    backend._copying.join()
    backend.suspend()
    assert "asleep: 2 MB copied" in caplog.text  # what runs is never copied ahead
    backend.resume()
    assert torch.equal(allocator.memory[1], before[1])


def test_a_copy_that_was_given_up_is_made_anew(backend: Any, allocator: Allocator) -> None:
    before = fill(allocator)
    backend.begin_copy()
    backend.forget_copy()
    backend.suspend()
    backend.resume()
    assert torch.equal(allocator.memory[0], before[0])


def test_our_backend_takes_the_place_of_vllm_s_own(adapter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("vllm.device_allocator.sleep_mode_backend")
    factory = module.SleepModeBackendFactory
    monkeypatch.setattr(factory, "_registry", {"cumem": lambda: module.CuMemBackend})  # as before any plugin
    monkeypatch.setenv("VLLM_PLUGINS", "")
    adapter.register()
    assert factory.get_backend_class("cumem") is not adapter.KeptWeightsBackend
    monkeypatch.setenv("VLLM_PLUGINS", "vllama")
    adapter.register()
    assert factory.get_backend_class("cumem") is adapter.KeptWeightsBackend


def test_the_allocator_of_the_installed_vllm_has_what_the_backend_reads() -> None:
    data = importlib.import_module("vllm.device_allocator").AllocationData
    assert {"handle", "tag", "is_asleep"} <= data.__dataclass_fields__.keys()
    default = importlib.import_module("vllm.config").ModelConfig.__dataclass_fields__["sleep_mode_backend"].default
    assert default == "cumem"


def test_the_extension_is_where_the_gateway_says(adapter: ModuleType) -> None:
    module, _, name = WORKER_EXTENSION.rpartition(".")
    extension = getattr(importlib.import_module(module), name)
    assert extension is adapter.SleepExtension
    assert not {"begin_host_copy", "forget_host_copy"} - set(dir(extension))
