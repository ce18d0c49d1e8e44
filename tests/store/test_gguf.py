from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ollama_layout import gguf_bytes

from vllama.errors import StoreError
from vllama.store.gguf import conversion


def convert(source: Path, destination: Path) -> None:
    for _ in conversion.convert(source, destination):
        pass


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
    log = (tmp_path / "log").read_text()
    assert log.startswith("1,,")
    assert log.endswith("-P -m vllama.store.gguf.conversion a b.gguf out exact\n")


def test_progress_of_the_converter_is_told_and_not_part_of_its_last_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    _pretend_python(monkeypatch, tmp_path, "echo progress 1 3; echo warned; echo progress 3 3; echo broken; exit 1")
    seen: list[tuple[int, int]] = []
    with pytest.raises(StoreError, match=r"status 1\):\nwarned\nbroken$"):
        seen.extend(conversion.convert(model, tmp_path / "out"))
    assert seen == [(1, 3), (3, 3)]


def test_a_conversion_that_nobody_waits_for_ends_its_converter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    _pretend_python(monkeypatch, tmp_path, f"echo $$ > {tmp_path}/pid; echo progress 1 3; exec tail -f /dev/null")
    steps = conversion.convert(model, tmp_path / "out")
    assert next(steps) == (1, 3)
    steps.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF of a model")
    with pytest.raises(StoreError, match=r"(?s)cannot convert model\.gguf to safetensors.*cannot read the GGUF file"):
        convert(tmp_path / "model.gguf", tmp_path / "out")


def test_the_store_is_used_without_importing_an_engine() -> None:
    code = (
        "import sys, vllama.store.pull, vllama.store.listing, vllama.store.gguf.conversion;"
        "print(sorted({'torch', 'transformers', 'vllm', 'numpy', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
