from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ollama_layout import gguf_bytes

from vllama.errors import StoreError
from vllama.store.gguf import convert


def _pretend_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GGUF file as far as its header."""
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes())
    return path


def test_a_failed_conversion_brings_the_last_lines_of_the_converter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    _pretend_python(monkeypatch, tmp_path, "seq 100; echo 'no such architecture' >&2; exit 3")
    with pytest.raises(StoreError) as caught:
        convert(model, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("cannot convert model.gguf to safetensors (converter ended with status 3):")
    assert message.endswith("99\n100\nno such architecture")
    assert "\n80\n" not in message


def test_a_killed_converter_is_told_by_its_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    _pretend_python(monkeypatch, tmp_path, "kill -9 $$")
    with pytest.raises(StoreError, match="converter ended with signal 9"):
        convert(model, tmp_path / "out")


def test_the_converter_works_offline_and_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend_python(monkeypatch, tmp_path, f'echo "$HF_HUB_OFFLINE,$CUDA_VISIBLE_DEVICES,$*" > {tmp_path}/log')
    monkeypatch.chdir(tmp_path)
    Path("a b.gguf").write_bytes(gguf_bytes())
    convert(Path("a b.gguf"), Path("out"))
    assert (tmp_path / "log").read_text() == "1,,-P -m vllama.store.gguf a b.gguf out\n"


def test_a_disk_without_room_for_the_converted_model_is_told_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two tensors of 100 M values in half a byte each: 400 MB in bfloat16, whatever the file takes."""
    tensors = b"".join(
        struct.pack("<Q", 1) + name + struct.pack("<IQQIQ", 2, 10_000, 10_000, 2, 0) for name in (b"a", b"b")
    )
    model = tmp_path / "model.gguf"
    model.write_bytes(gguf_bytes(rest=tensors, tensors=2))
    _pretend_python(monkeypatch, tmp_path, f"touch {tmp_path}/began")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=400_000_000))
    with pytest.raises(StoreError, match=r"cannot convert model\.gguf .*400,000,000 bytes are needed.*OLLAMA_MODELS"):
        convert(model, tmp_path / "out")
    assert not (tmp_path / "began").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000_000))
    convert(model, tmp_path / "out")
    assert (tmp_path / "began").exists()


def test_what_is_no_gguf_is_refused_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF of a model")
    with pytest.raises(StoreError, match=r"cannot convert model\.gguf to safetensors: not a GGUF file"):
        convert(tmp_path / "model.gguf", tmp_path / "out")


def test_the_store_is_used_without_importing_an_engine() -> None:
    code = (
        "import sys, vllama.store.pull, vllama.store.listing, vllama.store.gguf;"
        "print(sorted({'torch', 'transformers', 'vllm', 'numpy', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
