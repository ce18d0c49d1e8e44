"""Imports of a GGUF file that are killed at random instants: nothing is left over, and the next import works."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sampling import count

from vllama.machine.proc import process_ids
from vllama.names import ModelName
from vllama.store.garbage import Report, collect, delete
from vllama.store.model_store import ModelStore

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has the means")

KILLS = count(4, 50)
PATIENCE = 30
NAME = ModelName.parse("one")
ROWS = 2048
IMPORT = """
import sys
from pathlib import Path
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.create import create
from vllama.store.model_store import ModelStore

store = ModelStore(Path(sys.argv[1]), sys.argv[3])
for step in create(store, ModelName.parse("one"), Changes(), path=Path(sys.argv[2])):
    print(step.status, flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of 15 MB with quantized weights."""
    path: Path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for add, key, value in (
        (writer.add_uint32, "context_length", 64),
        (writer.add_uint32, "embedding_length", 512),
        (writer.add_uint32, "block_count", 1),
        (writer.add_uint32, "feed_forward_length", ROWS),
        (writer.add_uint32, "attention.head_count", 8),
        (writer.add_uint32, "attention.head_count_kv", 8),
        (writer.add_float32, "attention.layer_norm_rms_epsilon", 1e-5),
    ):
        add(f"llama.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{number}" for number in range(ROWS)])
    writer.add_token_types([1] * ROWS)
    writer.add_token_merges([])
    values = np.random.default_rng(0).normal(size=(ROWS, 512)).astype("float32")
    for name, rows, kind in (
        ("token_embd", values, "Q8_0"),
        *((f"blk.0.ffn_{part}", values, "Q4_0") for part in ("gate", "up")),
        ("blk.0.ffn_down", values.reshape(512, ROWS), "Q4_1"),
        *((f"blk.0.attn_{part}", values[:512], "Q4_0") for part in ("q", "k", "v", "output")),
    ):
        quantization = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", gguf.quantize(rows, quantization), raw_dtype=quantization)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Importer:
    """Imports into one store, in processes whose temporary directory is watched."""

    def __init__(self, directory: Path, model: Path, precision: str) -> None:
        self.store = ModelStore(directory / "models", precision)
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        self._command = [sys.executable, "-c", IMPORT, str(self.store.root), str(model), precision]

    def run(self, kill_after: float | None = None) -> float:
        """Import, and return the seconds since the first step; kill the import `kill_after` that time."""
        with subprocess.Popen(
            self._command, env={**os.environ, "TMPDIR": str(self.temporary)}, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"parsing GGUF\n"
            started = time.monotonic()
            try:
                process.wait(timeout=PATIENCE if kill_after is None else kill_after)
            except subprocess.TimeoutExpired:
                for converter in self._converters():
                    with suppress(ProcessLookupError):
                        os.kill(converter, signal.SIGSTOP)  # or it might end by itself
                process.kill()
        assert process.returncode == 0 or kill_after is not None
        return time.monotonic() - started

    def all_ended(self) -> bool:
        """Wait for the end of all processes that know the store's path; return whether they ended."""
        return all(_ends(pid) for pid, _ in self._processes())

    def _converters(self) -> list[int]:
        """Return the converters, without those that are not tied to their parent yet."""
        name, tie = b"vllama.store.gguf.conversion", b"vllama.machine.tied"
        return [pid for pid, command in self._processes() if name in command and tie not in command]

    def _processes(self) -> Iterator[tuple[int, bytes]]:
        for pid in process_ids():
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if os.fsencode(self.store.root) in command:
                    yield pid, command


def _ends(pid: int) -> bool:
    """Wait for the end of a process, and kill it if it does not end by itself."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = bool(select.select([descriptor], [], [], PATIENCE)[0])
    if not ended:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)
    return ended


@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_an_import_killed_at_any_instant_leaves_nothing_and_the_next_one_works(
    tmp_path: Path, model: Path, precision: str
) -> None:
    importer = Importer(tmp_path, model, precision)
    store, chance = importer.store, random.Random(precision)
    seconds = importer.run()
    for _ in range(KILLS):
        if store.list():
            delete(store, NAME)
        importer.run(kill_after=chance.uniform(0, seconds))
        assert importer.all_ended(), "a converter outlived its parent"
        assert all(manifest.damaged_files() == [] for manifest in store.list())
        assert store.unreadable() == {}
    importer.run()
    assert store.get(NAME).damaged_files() == []
    assert list(store.root.glob("staging/*@*")) == []
    assert list(importer.temporary.iterdir()) == []
    assert collect(store) == Report()
