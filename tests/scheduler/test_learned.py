"""What loads were measured to take."""

from __future__ import annotations

import logging
from pathlib import Path

import orjson
import pytest

from vllama.scheduler.learned import FILE, LearnedMemory, installed_version
from vllama.scheduler.memory import GIB, Device, Learned, Need, Placement
from vllama.scheduler.placing import place
from vllama.store.kv_shape import KvShape

NEED = Need("model", 10 * GIB, KvShape(1000), 4096)


def placement(kind: str = "gpu", name: str = "H200") -> Placement:
    device = Device(0, name, 141 * GIB, 140 * GIB, kind="gpu" if kind == "gpu" else "cpu")
    found = place(NEED, [device])
    assert isinstance(found, Placement)
    return found


@pytest.fixture
def learned(tmp_path: Path) -> LearnedMemory:
    return LearnedMemory(tmp_path, "0.26.0")


def test_a_load_s_overhead_is_what_it_holds_beyond_weights_and_kv_cache(learned: LearnedMemory, tmp_path: Path) -> None:
    plan = placement()
    learned.note_load("engine", plan, plan.weights + plan.kv + 2 * GIB)
    assert learned.of("engine") == {"H200": Learned(2 * GIB)}
    assert LearnedMemory(tmp_path, "0.26.0").of("engine") == {"H200": Learned(2 * GIB)}


def test_on_a_cpu_the_kv_cache_is_not_held_yet_when_the_load_ends(learned: LearnedMemory) -> None:
    plan = placement("cpu", "Xeon")
    learned.note_load("engine", plan, plan.weights + 2 * GIB)
    assert learned.of("engine") == {"Xeon": Learned(2 * GIB)}


def test_what_stays_while_it_sleeps_is_kept_beside_it(learned: LearnedMemory) -> None:
    plan = placement()
    learned.note_load("engine", plan, plan.weights + plan.kv + 2 * GIB)
    learned.note_sleep("engine", plan, GIB, 12 * GIB)
    assert learned.of("engine") == {"H200": Learned(2 * GIB, GIB, 12 * GIB)}
    learned.note_load("engine", plan, plan.weights + plan.kv + 3 * GIB)
    assert learned.of("engine") == {"H200": Learned(3 * GIB, GIB, 12 * GIB)}


def test_another_engine_device_or_vllm_is_another_entry(learned: LearnedMemory, tmp_path: Path) -> None:
    plan = placement()
    learned.note_load("engine", plan, plan.weights + plan.kv + GIB)
    learned.note_load("engine", placement(name="L4"), plan.weights + plan.kv + 2 * GIB)
    assert learned.of("engine") == {"H200": Learned(GIB), "L4": Learned(2 * GIB)}
    assert learned.of("other") == {}
    assert LearnedMemory(tmp_path, "0.32.0").of("engine") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"format_version": 1}',
        b'{"format_version": 1, "loads": 5}',
        b'{"format_version": 1, "loads": [{}]}',
    ],
)
def test_a_damaged_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert LearnedMemory(tmp_path, "0.26.0").of("engine") == {}


def test_what_cannot_be_written_is_said_and_kept_in_mind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learned = LearnedMemory(tmp_path / "missing", "0.26.0")
    plan = placement()
    with caplog.at_level(logging.WARNING):
        learned.note_load("engine", plan, plan.weights + plan.kv + GIB)
    assert "cannot save the measured memory" in caplog.text
    assert learned.of("engine") == {"H200": Learned(GIB)}


def test_the_file_can_be_read_by_people(learned: LearnedMemory, tmp_path: Path) -> None:
    plan = placement()
    learned.note_load("engine", plan, plan.weights + plan.kv + GIB)
    (entry,) = orjson.loads((tmp_path / FILE).read_bytes())["loads"]
    assert entry == {"engine": "engine", "device": "H200", "vllm": "0.26.0", "overhead": GIB, "residue": 0, "host": 0}


def test_the_installed_vllm_has_a_version() -> None:
    assert installed_version().startswith("vllm")
