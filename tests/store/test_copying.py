"""Checks that copies of files share: room on the disk, and progress while a long file is hashed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from vllama.errors import StoreError
from vllama.store import hashing
from vllama.store.copying import check_room
from vllama.store.progress import Progress

SPARE = 64 << 20


def test_a_copy_leaves_64_mib_of_the_disk_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=SPARE + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check_room(tmp_path / "not-there-yet", 100, "use a larger disk")
    with pytest.raises(StoreError, match=r"101 bytes needed, 67,108,964 free; use a larger disk"):
        check_room(tmp_path / "not-there-yet", 101, "use a larger disk")


def test_nothing_to_copy_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check_room(tmp_path, 0, "use a larger disk")


def test_the_progress_of_hashing_is_reported_once_per_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_CHUNK", 4)
    monkeypatch.setattr(hashing, "_REPORT", 16)
    (tmp_path / "weights").write_bytes(bytes(38))
    steps = hashing.hash_file(tmp_path, "weights")
    reports = []
    while True:
        try:
            reports.append(next(steps))
        except StopIteration as end:
            file = end.value
            break
    assert reports == [Progress("hashing weights", total=38, completed=size) for size in (16, 32)]
    assert (file.size, file.sha256) == (38, hashlib.sha256(bytes(38)).hexdigest())
