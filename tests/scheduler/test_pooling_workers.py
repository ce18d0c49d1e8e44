"""What is different about the worker of a model that makes embeddings, or classifies."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from tiny_snapshot import make_manifest, write_snapshot

from vllama.machine.host import HostMemory
from vllama.scheduler import engine_flags
from vllama.scheduler.devices import Machine
from vllama.scheduler.launcher import Launcher
from vllama.scheduler.memory import GIB, Device
from vllama.scheduler.probe import produce_one_class, produce_one_embedding, produce_one_token
from vllama.scheduler.process import WorkerSpec
from vllama.scheduler.spares import Spares
from vllama.settings import Settings
from vllama.store.manifest import Manifest

pytestmark = pytest.mark.anyio

MACHINE = Machine((Device(0, "Xeon", 16 * GIB, 12 * GIB, kind="cpu"),))
BERT = {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 512}
F32 = {"embeddings.word_embeddings.weight": ("F32", [32, 8])}
RANKER = {**BERT, "architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
JUDGE = {**RANKER, "id2label": {"0": "bad", "1": "good"}}
F16 = {"embeddings.word_embeddings.weight": ("F16", [32, 8])}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[WorkerSpec]:
    """The specifications of the workers that would have been started."""
    specs: list[WorkerSpec] = []

    async def start(spares: Spares, spec: WorkerSpec) -> Any:
        specs.append(spec)
        return MagicMock()

    monkeypatch.setattr(Spares, "start", start)
    return specs


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vllama-") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)


MACHINE = Machine((Device(0, "Xeon", 16 * GIB, 12 * GIB, kind="cpu", cores=2),), "no GPU: no driver")


class Starter:
    """Starts workers for snapshots, and returns what they would be told."""

    def __init__(self, settings: Settings, starts: list[WorkerSpec], directory: Path) -> None:
        self.settings, self._starts, self._directory = settings, starts, directory
        self.flags: list[str] = []

    async def start(self, *, embeds: bool = False, **snapshot: Any) -> WorkerSpec:
        folder = write_snapshot(self._directory / f"s{len(self._starts)}", **snapshot)
        manifest: Manifest = make_manifest("m", folder, embeds=embeds)
        launcher = Launcher(self.settings, user_flags=self.flags, look=lambda: MACHINE)
        try:
            await launcher.start(manifest)
        finally:
            launcher.close()
        return self._starts[-1]


@pytest.fixture
def starter(
    settings: Settings, starts: list[WorkerSpec], runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Starter:
    monkeypatch.setattr(engine_flags, "has_gpu", lambda: False)
    monkeypatch.setattr(engine_flags, "computes_half_precision_fast", lambda: True)
    return Starter(settings, starts, tmp_path)


def value_of(spec: WorkerSpec, flag: str) -> str | None:
    arguments = list(spec.arguments)
    return arguments[arguments.index(flag) + 1] if flag in arguments else None


async def test_it_pools_and_is_ready_once_it_has_made_an_embedding(starter: Starter) -> None:
    spec = await starter.start(config=BERT, tensors=F32)
    assert value_of(spec, "--runner") == "pooling"
    assert spec.trial is produce_one_embedding


@pytest.mark.parametrize("config", [RANKER, JUDGE])
async def test_a_classifier_is_ready_once_it_has_judged_a_text(starter: Starter, config: dict[str, Any]) -> None:
    spec = await starter.start(config=config, tensors=F32)
    assert (value_of(spec, "--runner"), value_of(spec, "--dtype")) == ("pooling", "float32")
    assert spec.trial is produce_one_class


async def test_a_model_that_writes_text_is_asked_for_a_token_and_vllm_chooses_the_runner(starter: Starter) -> None:
    spec = await starter.start()
    assert (value_of(spec, "--runner"), value_of(spec, "--dtype")) == (None, None)
    assert spec.trial is produce_one_token


async def test_a_model_that_writes_text_is_converted_for_its_embeddings(starter: Starter) -> None:
    spec = await starter.start(embeds=True)
    assert (value_of(spec, "--runner"), value_of(spec, "--convert")) == ("pooling", "embed")
    assert spec.trial is produce_one_embedding
    assert spec.log.name == "m_latest.embeddings.log"
    assert "--tool-call-parser" not in spec.arguments


async def test_float32_weights_are_computed_in_float32_on_a_cpu(starter: Starter) -> None:
    assert value_of(await starter.start(config=BERT, tensors=F32), "--dtype") == "float32"
    assert value_of(await starter.start(config=BERT, tensors=F16), "--dtype") is None


@pytest.mark.parametrize(
    ("tensors", "total", "dtype"),
    [(F16, 4096, "float32"), (F16, 2047, None), ({"w.qweight": ("I32", [32, 8])}, 4096, None)],
    ids=["fits", "too large", "quantized"],
)
async def test_a_processor_that_emulates_16_bits_computes_in_float32_what_fits(
    starter: Starter, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Any], total: int, dtype: str | None
) -> None:
    monkeypatch.setattr(engine_flags, "computes_half_precision_fast", lambda: False)
    monkeypatch.setattr(engine_flags, "host_memory", lambda: HostMemory(total, total))
    assert value_of(await starter.start(tensors=tensors), "--dtype") == dtype
    monkeypatch.setattr(engine_flags, "has_gpu", lambda: True)
    assert value_of(await starter.start(tensors=tensors), "--dtype") is None


async def test_on_a_gpu_vllm_chooses_the_type(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_flags, "has_gpu", lambda: True)
    assert value_of(await starter.start(config=BERT, tensors=F32), "--dtype") is None


async def test_the_user_s_own_choice_stands(starter: Starter) -> None:
    starter.flags = ["--dtype", "bfloat16"]
    arguments = list((await starter.start(config=BERT, tensors=F32)).arguments)
    assert arguments.count("--dtype") == 1
    assert arguments[-2:] == ["--dtype", "bfloat16"]


@pytest.mark.parametrize(("asked", "served"), [(0, "-1"), (128, "128"), (8192, "512")])
async def test_a_context_for_chats_is_made_smaller_where_the_model_has_less(
    starter: Starter, asked: int, served: str
) -> None:
    starter.settings = replace(starter.settings, context_length=asked)
    assert value_of(await starter.start(config=BERT, tensors=F32), "--max-model-len") == served


class TestTheTrial:
    """`produce_one_embedding` and `produce_one_class` against a socket."""

    @staticmethod
    @asynccontextmanager
    async def _answering(path: Path, status: int, body: bytes) -> AsyncIterator[list[bytes]]:
        asked: list[bytes] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            asked.append(head.split(b"\r\n")[0] + b"\n" + await reader.readexactly(length))
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
            await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(answer, path):
            yield asked

    async def test_it_is_passed_by_a_vector(self, runtime: Path) -> None:
        async with self._answering(runtime / "s", 200, b'{"model":"","embeddings":[[0.5]]}') as asked:
            assert await produce_one_embedding(runtime / "s", 10)
        line, _, body = asked[0].partition(b"\n")
        assert line == b"POST /api/embed HTTP/1.1"
        assert json.loads(body)["input"]

    async def test_of_a_classifier_it_is_passed_by_probabilities(self, runtime: Path) -> None:
        async with self._answering(runtime / "s", 200, b'{"data":[{"index":0,"probs":[0.5]}]}') as asked:
            assert await produce_one_class(runtime / "s", 10)
        assert asked[0].startswith(b"POST /classify HTTP/1.1\n")
        async with self._answering(runtime / "s", 500, b'{"error":"probs"}'):
            assert not await produce_one_class(runtime / "s", 10)

    @pytest.mark.parametrize(
        ("status", "body"),
        [(200, b'{"model":"","embeddings":[]}'), (500, b'{"error":"x"}'), (400, b'{"error":"[["}'), (200, b"")],
    )
    async def test_nothing_else_passes_it(self, runtime: Path, status: int, body: bytes) -> None:
        async with self._answering(runtime / "s", status, body):
            assert not await produce_one_embedding(runtime / "s", 10)

    async def test_where_nothing_listens_it_is_not_passed_yet(self, runtime: Path) -> None:
        assert not await produce_one_embedding(runtime / "nobody", 10)
