"""NVML, with a stand-in for its Python module: it is opened once, and shows the GPUs that CUDA would."""

from __future__ import annotations

import sys

import pytest
from scripted_nvml import FakeGpu, FakeNvml

from vllama.machine.nvml import NvmlUnavailable, nvml, visible


def gpus(*, parts_of_the_first: int = 0) -> FakeNvml:
    found = [FakeGpu(uuid=f"GPU-0000000{number}-aaaa".encode()) for number in range(3)]
    found[0].parts = [FakeGpu(uuid=f"MIG-0000000{number}-aaaa") for number in range(parts_of_the_first)]
    return FakeNvml(found)


def ids(fake: FakeNvml, stated: str | None = None) -> list[str]:
    return [gpu.id for gpu in visible(fake, {} if stated is None else {"CUDA_VISIBLE_DEVICES": stated})]


def test_the_library_is_opened_once() -> None:
    fake = gpus()
    for _ in range(2):
        with nvml(fake) as library:
            assert library is fake
    assert fake.opened == 1


def test_an_error_of_the_library_is_the_reason_why_there_is_none() -> None:
    with pytest.raises(NvmlUnavailable, match=r"^NVML: Driver Not Loaded$"), nvml(FakeNvml(broken="Driver Not Loaded")):
        pass
    fake = gpus()
    with pytest.raises(NvmlUnavailable, match=r"^NVML: GPU is lost$"), nvml(fake):
        raise fake.NVMLError("GPU is lost")


def test_without_the_python_module_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailable, match=r"^nvidia-ml-py is not installed$"), nvml():
        pass


@pytest.mark.parametrize(
    ("stated", "chosen"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("1", ["1"]),
        ("2, 0", ["2", "0"]),
        ("GPU-00000002-aaaa,1", ["2", "1"]),
        ("GPU-00000001", ["1"]),
        ("0,7,1", ["0"]),
        ("0,-1,1", ["0"]),
    ],
)
def test_the_variable_chooses_gpus_as_it_does_for_cuda(stated: str | None, chosen: list[str]) -> None:
    assert ids(gpus(), stated) == chosen


def test_of_a_divided_gpu_each_part_is_one() -> None:
    fake = gpus(parts_of_the_first=2)
    assert ids(fake) == ["MIG-00000000-aaaa", "MIG-00000001-aaaa", "1", "2"]
    assert ids(fake, "MIG-00000001-aaaa") == ["MIG-00000001-aaaa"]
