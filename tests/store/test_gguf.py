from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllama.errors import StoreError
from vllama.store.gguf import convert


def _pretend_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_failed_conversion_brings_the_last_lines_of_the_converter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _pretend_python(monkeypatch, tmp_path, "seq 100; echo 'no such architecture' >&2; exit 3")
    with pytest.raises(StoreError) as caught:
        convert(tmp_path / "model.gguf", tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("cannot convert model.gguf to safetensors (converter ended with status 3):")
    assert message.endswith("99\n100\nno such architecture")
    assert "\n80\n" not in message


def test_a_killed_converter_is_told_by_its_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend_python(monkeypatch, tmp_path, "kill -9 $$")
    with pytest.raises(StoreError, match="converter ended with signal 9"):
        convert(tmp_path / "model.gguf", tmp_path / "out")


def test_the_converter_works_offline_and_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend_python(monkeypatch, tmp_path, f'echo "$HF_HUB_OFFLINE,$CUDA_VISIBLE_DEVICES,$*" > {tmp_path}/log')
    convert(Path("a b.gguf"), Path("out"))
    assert (tmp_path / "log").read_text() == "1,,-P -m vllama.store.gguf a b.gguf out\n"


def test_the_store_is_used_without_importing_an_engine() -> None:
    code = (
        "import sys, vllama.store.pull, vllama.store.listing, vllama.store.gguf;"
        "print(sorted({'torch', 'transformers', 'vllm', 'numpy', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
