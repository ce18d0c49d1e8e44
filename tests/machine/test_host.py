from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllama.machine.host import (
    HostMemory,
    computes_half_precision_fast,
    cores,
    has_float_vectors,
    host_memory,
    processor,
)

GIB = 1024**3


def test_the_machine_has_a_processor_cores_and_ram() -> None:
    assert processor()
    assert cores() == len(os.sched_getaffinity(0))
    ram = host_memory()
    assert 0 < ram.free <= ram.total


def test_a_control_group_s_limit_is_the_machine_s(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "cgroup" / "box" / "job"
    (proc / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  64000000 kB\nMemAvailable:  60000000 kB\n")
    assert host_memory(proc, tmp_path / "cgroup") == HostMemory(64_000_000 * 1024, 60_000_000 * 1024)
    (proc / "self" / "cgroup").write_text("0::/box/job\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    (group.parent / "memory.max").write_text(f"{8 * GIB}\n")
    (group.parent / "memory.current").write_text(f"{5 * GIB}\n")
    (group.parent / "memory.stat").write_text(f"anon 1\ninactive_file {GIB}\n")
    assert host_memory(proc, tmp_path / "cgroup") == HostMemory(8 * GIB, 4 * GIB)


def test_a_processor_without_a_name_is_called_by_its_architecture(tmp_path: Path) -> None:
    assert processor(tmp_path) == os.uname().machine
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A: B\nmodel name\t: C\n")
    assert processor(tmp_path) == "A: B"


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2 f16c fma\n", False),
        ("flags\t\t: fpu avx avx2 avx512f avx512bw\n", True),
        ("flags\t\t: fpu avx avx2 avx_vnni avx_ne_convert\n", True),
        ("Features\t: fp asimd bf16\n", True),
    ],
)
def test_16_bit_types_are_emulated_on_x86_without_avx_512(tmp_path: Path, cpuinfo: str, *, fast: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}")
    assert computes_half_precision_fast(tmp_path) is fast


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2 f16c fma\n", True),
        ("flags\t\t: fpu sse4_2 avx f16c\n", False),
        ("Features\t: fp asimd bf16\n", False),
    ],
)
def test_x86_processors_since_2013_have_vectors_of_floats(tmp_path: Path, cpuinfo: str, *, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}")
    assert has_float_vectors(tmp_path) is has
