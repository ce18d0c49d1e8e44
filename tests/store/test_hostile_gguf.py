"""GGUF files that declare more than they hold, or that are damaged: refused before memory is taken for them."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from vllama.errors import StoreError
from vllama.store.gguf import conversion, limits
from vllama.store.gguf.architectures.names import ARCHITECTURES
from vllama.store.gguf.header import read_contents, read_header

STRING, ARRAY, UINT32 = 8, 9, 4


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def gguf(*keys: bytes, tensors: tuple[bytes, ...] = (), counts: tuple[int, int] | None = None) -> bytes:
    numbers = counts or (len(tensors), len(keys))
    return b"GGUF" + struct.pack("<IQQ", 3, *numbers) + b"".join(keys) + b"".join(tensors)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def of(architecture: str) -> bytes:
    return key("general.architecture", STRING, text(architecture))


HUGE = 2**62
HOSTILE = {
    "more keys than the file holds": gguf(of("llama"), counts=(0, 60_000)),
    "more tensors than the file holds": gguf(of("llama"), counts=(120_000, 1)),
    "more tensors than any file has": gguf(of("llama"), counts=(HUGE, 1)),
    "a long text": gguf(of("llama"), text("general.name") + struct.pack("<IQ", STRING, 60 << 20)),
    "a name of a key that is too long": gguf(of("llama"), struct.pack("<Q", 60 << 20)),
    "a long array of numbers": gguf(of("llama"), key("a", ARRAY, struct.pack("<IQ", UINT32, 1 << 23))),
    "an endless array of numbers": gguf(of("llama"), key("a", ARRAY, struct.pack("<IQ", UINT32, HUGE))),
    "a long array of texts": gguf(of("llama"), key("a", ARRAY, struct.pack("<IQ", STRING, 1 << 23))),
    "an endless array of empty texts": gguf(of("llama"), key("a", ARRAY, struct.pack("<IQ", STRING, HUGE)), bytes(999)),
    "an array in an array": gguf(of("llama"), key("a", ARRAY, struct.pack("<IQ", ARRAY, 1))),
    "a value of no known type": gguf(of("llama"), key("a", 99, b"")),
    "a tensor of many dimensions": gguf(of("llama"), tensors=(tensor("x", (1,) * 9),)),
    "an alignment of zero": gguf(of("llama"), key("general.alignment", UINT32, struct.pack("<I", 0))),
    "an empty file": b"",
    "only the magic": b"GGUF",
    "another version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_header_that_declares_more_than_the_file_holds_takes_no_memory(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        for read in (read_header, read_contents):
            with pytest.raises(StoreError, match="cannot read the GGUF file"):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_any_change_of_a_header_is_read_or_refused(tmp_path: Path) -> None:
    whole = gguf(
        of("llama"),
        key("llama.block_count", UINT32, struct.pack("<I", 2)),
        key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("b") + text("")),
        key("x", ARRAY, struct.pack("<IQ", UINT32, 2) + bytes(8)),
        tensors=(tensor("token_embd.weight", (4, 4)), tensor("output.weight", (4, 4), offset=64)),
    )
    path = tmp_path / "model.gguf"
    chance = random.Random(1)
    for _ in range(1500):
        data = bytearray(whole + bytes(128))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(whole))] = chance.choice((0, 1, 127, 255, chance.randrange(256)))
        path.write_bytes(data[: chance.randint(1, len(data)) if chance.random() < 0.3 else len(data)])
        for read in (read_header, read_contents):
            with suppress(StoreError):
                read(path)


@pytest.mark.vllm
@pytest.mark.parametrize("architecture", ["llama", "bert", "gpt2"])
def test_a_header_that_names_no_model_is_refused_within_the_limits(architecture: str, tmp_path: Path) -> None:
    assert architecture in ARCHITECTURES
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(of(architecture)))
    with pytest.raises(conversion.UnusableGguf, match="lacks the"):
        list(conversion.convert(path, tmp_path / "out"))


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `greedy` that a converter's process can run, with small limits."""
    module = tmp_path / "greedy.py"
    module.write_text(
        "import sys\n"
        "from vllama.store.gguf.conversion import run_as_converter\n"
        "def work():\n"
        "    if sys.argv[1] == 'memory': bytearray(1 << 30)\n"
        "    if sys.argv[1] == 'time':\n"
        "        while True: pass\n"
        "    if sys.argv[1] == 'bug': {}['x']\n"
        "run_as_converter(work)\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(limits, "_limits", limits.Limits(memory=512 << 20, seconds=1))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("memory", "needs more memory than a converter may take; see VLLAMA_CONVERTER_MEMORY"),
        ("time", "1 s of processor time without progress; see VLLAMA_CONVERTER_TIMEOUT"),
        ("bug", "the file is damaged: KeyError: 'x'"),
    ],
)
@pytest.mark.usefixtures("converter")
def test_a_converter_beyond_its_limits_ends_with_one_line(kind: str, why: str) -> None:
    with pytest.raises(conversion.ConverterFailed) as failed:
        list(conversion.run_converter("greedy", kind))
    assert why in failed.value.last
    assert "Traceback" not in failed.value.last
    assert failed.value.is_files_fault


def test_conversions_beyond_the_limit_wait_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_limits", limits.Limits(at_once=1))
    with pytest.raises(StopIteration) as first:
        next(limits.turn())
    with first.value.value:
        second = limits.turn()
        assert next(second).pause > 0
    with pytest.raises(StopIteration) as ended:
        next(second)
    with ended.value.value:
        pass
