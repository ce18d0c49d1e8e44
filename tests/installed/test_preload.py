"""Which libraries a worker on a CPU is started with; the packages are those of a folder made for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vllama.installed.preload import VARIABLE, preload


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages in front of all others: torch and vLLM, without a library yet."""
    for package in ("torch", "vllm"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('nobody may import it')")
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def library(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


@pytest.mark.parametrize("folder", ["torch.libs", "torch/lib"])
def test_torchs_own_openmp_is_the_only_one(site: Path, folder: str) -> None:
    openmp = library(site / folder / "libgomp-a34b3233.so.1.0.0")
    assert preload({}) == {VARIABLE: openmp}


def test_vllms_allocator_comes_first(site: Path) -> None:
    openmp, allocator = library(site / "torch/lib/libgomp.so.1"), library(site / "vllm/libs/libtcmalloc_minimal.so.4")
    assert preload({}) == {VARIABLE: f"{allocator}:{openmp}"}


def test_what_the_user_preloads_stays_and_is_not_doubled(site: Path) -> None:
    allocator = library(site / "vllm/libs/libtcmalloc.so.4")
    library(site / "torch/lib/libgomp.so.1")
    assert preload({VARIABLE: "/opt/libiomp5.so"}) == {VARIABLE: f"{allocator}:/opt/libiomp5.so"}
    assert preload({VARIABLE: "/opt/libtcmalloc.so /opt/libgomp.so"}) == {}


@pytest.mark.usefixtures("site")
def test_packages_without_such_libraries_add_nothing() -> None:
    assert preload({}) == {}
