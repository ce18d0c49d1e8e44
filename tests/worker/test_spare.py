"""What a spare worker does before its order; that it becomes a worker is seen in tests/scheduler and tests/engine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vllama.worker.spare import opens_gpu


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A file in the place of the device that CUDA opens."""
    device = tmp_path / "nvidia-uvm"
    device.touch()
    return device


@pytest.mark.parametrize(
    ("source", "opens"),
    [
        ("x = 1", False),
        ("x = open({device!r})", True),
        ("open({device!r}).close()", False),
        ("raise RuntimeError", True),  # nobody knows what it would have done
        ("import os; os._exit(3)", True),
    ],
)
def test_a_module_that_opens_the_gpu_is_found_out_without_being_imported(
    tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch, source: str, *, opens: bool
) -> None:
    (tmp_path / "touchy.py").write_text(source.format(device=str(device)))
    monkeypatch.syspath_prepend(tmp_path)
    assert opens_gpu("touchy", str(device)) is opens
    assert "touchy" not in sys.modules


def test_where_there_is_no_gpu_nothing_is_tried(tmp_path: Path) -> None:
    assert opens_gpu("no.such.module", str(tmp_path / "nvidia-uvm")) is False
