"""From a manifest to a worker, with a program in vLLM's place; and the directory of the sockets."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_adapter import write_adapter
from tiny_snapshot import make_manifest, write_snapshot

from vllama.errors import BadEngineFlags, LoadFailed, RequestError, VllamaError
from vllama.names import ModelName
from vllama.protocol.environment import SUPERVISED
from vllama.scheduler import engine_flags
from vllama.scheduler.devices import Machine
from vllama.scheduler.launcher import Launcher
from vllama.scheduler.memory import GIB, MIB, Claim, Device, Placement
from vllama.scheduler.policy import NoPlace, anywhere
from vllama.scheduler.process import WorkerProcess
from vllama.settings import Settings
from vllama.store.manifest import Adapter, ChatMessage, Manifest, ManifestFile
from vllama.store.model_store import ModelStore

from . import stand_in_worker

pytestmark = pytest.mark.anyio

PATIENCE = 30.0

MACHINE = Machine((Device(0, "Xeon", 16 * GIB, 12 * GIB, kind="cpu", cores=2),), "no GPU: no driver")
GPUS = Machine(tuple(Device(index, "H100", 80 * GIB, 79 * GIB, id=f"{index + 4}") for index in range(2)))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # processes take real time


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where launchers make their directories."""
    with tempfile.TemporaryDirectory(prefix="vllama-") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)


MakeLauncher = Callable[..., Launcher]


@pytest.fixture
def launcher(runtime: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLauncher]:
    """Return a function that makes a launcher whose workers behave as one of stand_in_worker.py's."""
    monkeypatch.setattr(engine_flags, "has_gpu", lambda: False)
    launchers: list[Launcher] = []

    def make(behaviour: str = "ready", **options: Any) -> Launcher:
        command = (sys.executable, stand_in_worker.__file__, behaviour)
        launchers.append(Launcher(settings, **{"command": command, "look": lambda: MACHINE, **options}))
        return launchers[-1]

    yield make
    for made in launchers:
        made.close()


@asynccontextmanager
async def started(
    launcher: Launcher, manifest: Manifest, placement: Placement | None = None
) -> AsyncIterator[WorkerProcess]:
    """A worker that ends with the block, also where the test fails: otherwise its event loop would wait for it."""
    async with asyncio.timeout(PATIENCE):
        worker = await launcher.start(manifest, placement)
        try:
            yield worker
        finally:
            await worker.stop(0)


async def told_when_ready(worker: WorkerProcess) -> dict[str, Any]:
    """What a worker is told, as soon as it serves."""
    await worker.become_ready(PATIENCE)
    told: dict[str, Any] = json.loads(worker.socket.with_name(f"{worker.socket.name}.told").read_text())
    return told


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(
        "smollm2",
        write_snapshot(tmp_path / "snapshot"),
        parameters={"temperature": 0.5, "stop": ["<|im_end|>"]},
        system="Be brief.",
        messages=(ChatMessage("user", "hi"),),
        engine_flags=("--max-model-len", "64"),
    )


@pytest.fixture
async def told(launcher: MakeLauncher, manifest: Manifest) -> AsyncIterator[dict[str, Any]]:
    """What a worker is told that was started with a flag of the user."""
    async with started(launcher(user_flags=["--seed", "1"]), manifest) as worker:
        yield await told_when_ready(worker)


async def test_a_worker_serves_the_snapshot_under_every_spelling_of_its_name(
    told: dict[str, Any], manifest: Manifest
) -> None:
    arguments = told["arguments"]
    assert arguments[0] == str(manifest.snapshot)
    after = arguments[arguments.index("--served-model-name") + 1 :]
    assert after[:3] == ["smollm2:latest", "smollm2", "registry.ollama.ai/library/smollm2:latest"]


async def test_the_flags_of_the_manifest_come_before_those_of_the_user(told: dict[str, Any]) -> None:
    assert told["arguments"][-4:] == ["--max-model-len", "64", "--seed", "1"]


async def test_a_worker_has_room_for_the_adapters_of_the_store_and_none_without_any(
    launcher: MakeLauncher, manifest: Manifest, settings: Settings, tmp_path: Path, told: dict[str, Any]
) -> None:
    assert "--enable-lora" not in told["arguments"]
    layers = {"model.layers.0.self_attn.q_proj": (8, 8)}
    place = write_adapter(tmp_path / "adapter", layers, rank=12)
    files = tuple(ManifestFile(path.name, path.stat().st_size, "0" * 64) for path in place.iterdir())
    tuned = replace(manifest, name=ModelName.parse("tuned"), adapter=Adapter(place, files, 12))
    unservable = replace(tuned, name=ModelName.parse("wide"), engine_flags=("--max-lora-rank", "1"))
    store = ModelStore(settings.models)
    for model in (manifest, tuned, unservable):
        store.put(model)
    async with started(launcher(), manifest) as worker:
        arguments = (await told_when_ready(worker))["arguments"]
    assert arguments[arguments.index("--enable-lora") :][:3] == ["--enable-lora", "--max-lora-rank", "16"]
    assert worker.adapter_rank == 16


async def test_a_worker_is_not_started_for_an_adapter_that_it_could_not_serve(
    launcher: MakeLauncher, manifest: Manifest, tmp_path: Path
) -> None:
    place = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": (8, 8)}, rank=12)
    with pytest.raises(RequestError, match="--no-enable-lora"):
        await launcher(user_flags=["--no-enable-lora"]).start(replace(manifest, adapter=Adapter(place, (), 12)))


async def test_a_worker_is_told_that_a_gateway_talks_to_it(told: dict[str, Any]) -> None:
    assert told["environment"][SUPERVISED]


async def test_each_worker_has_a_socket_of_its_own_and_a_log_under_its_name(
    launcher: MakeLauncher, manifest: Manifest, settings: Settings
) -> None:
    maker = launcher("silent")
    async with started(maker, manifest) as first, started(maker, manifest) as second:
        assert first.socket != second.socket
        assert first.socket.parent == second.socket.parent == maker.runtime
        names = {path.name for path in (settings.models / "logs").iterdir()}
        assert names == {"smollm2_latest.log", "smollm2_latest.1.log"}  # that of the first is kept


def value_of(told: dict[str, Any], flag: str) -> str:
    arguments = told["arguments"]
    return str(arguments[arguments.index(flag) + 1])


async def told_to(launcher: Launcher, manifest: Manifest, placement: Placement | None = None) -> dict[str, Any]:
    """What a worker is told, and its memory."""
    async with started(launcher, manifest, placement) as worker:
        told = await told_when_ready(worker)
    return told | {"memory": worker.memory, "can_sleep": worker.can_sleep}


async def test_a_worker_on_a_cpu_gets_the_kv_cache_that_was_planned_and_holds_it_in_ram(
    launcher: MakeLauncher, manifest: Manifest
) -> None:
    told = await told_to(launcher(), manifest)
    assert value_of(told, "--kv-cache-memory-bytes") == str(64 * MIB)
    assert "--gpu-memory-utilization" not in told["arguments"]
    assert told["memory"].total > 64 * MIB
    assert told["memory"].gpu == 0
    assert not told["can_sleep"]


async def test_a_worker_on_a_gpu_gets_the_devices_that_were_planned(
    launcher: MakeLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_flags, "has_gpu", lambda: True)
    served = make_manifest("a", write_snapshot(tmp_path / "a"))
    maker = launcher(look=lambda: GPUS)
    found = maker.planner.place(served, GPUS, [Claim(0, 70 * GIB)])
    assert isinstance(found, Placement)
    told = await told_to(maker, served, found)
    assert told["environment"]["CUDA_VISIBLE_DEVICES"] == "5"
    assert told["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert value_of(told, "--kv-cache-memory-bytes") == str(found.kv)
    assert told["memory"].gpu == told["memory"].total == found.claim
    assert told["can_sleep"]


async def test_a_model_that_cannot_fit_is_refused_before_anything_starts(
    launcher: MakeLauncher, manifest: Manifest
) -> None:
    full = Machine((replace(MACHINE.devices[0], free=GIB),))
    with pytest.raises(LoadFailed, match="model requires more system memory"):
        await launcher(look=lambda: full).start(manifest)


async def test_where_nvml_does_not_know_the_gpus_vllm_has_to_see_for_itself(
    launcher: MakeLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_flags, "has_gpu", lambda: True)
    told = await told_to(launcher(), make_manifest("a", write_snapshot(tmp_path / "a")))
    assert "--kv-cache-memory-bytes" not in told["arguments"]
    assert value_of(told, "--max-model-len") == "-1"
    assert "one model may take a whole GPU: no GPU: no driver" in caplog.text


async def test_a_context_longer_than_the_model_s_is_the_model_s(
    launcher: MakeLauncher, settings: Settings, tmp_path: Path
) -> None:
    served = make_manifest("a", write_snapshot(tmp_path / "a"))
    maker = launcher()
    maker._settings = maker.planner._settings = replace(settings, context_length=100_000)
    assert value_of(await told_to(maker, served), "--max-model-len") == "8192"


async def test_a_flag_for_all_models_with_a_longer_context_is_cut_and_the_log_names_the_model(
    launcher: MakeLauncher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = make_manifest("a", write_snapshot(tmp_path / "a"))
    told = await told_to(launcher(user_flags=["--max-model-len=100k"]), served)
    assert told["arguments"][-2:] == ["--max-model-len", "8192"]
    assert (
        "a:latest has a context of 8192 tokens; the 100000 that are set for all models are cut to that" in caplog.text
    )


@pytest.mark.parametrize(
    ("own", "for_all"),
    [
        (("--max-model-len", "100000"), ()),  # of one model: strict
        ((), ("--max-model-len", "8192")),
        ((), ("--max-model-len", "-1")),
        ((), ("--max-model-len", "auto")),
        ((), ("--max-model-len", "100000", "--hf-overrides", '{"max_position_embeddings": 100000}')),
    ],
)
async def test_another_context_is_passed_on_as_it_is(
    launcher: MakeLauncher, tmp_path: Path, own: tuple[str, ...], for_all: tuple[str, ...]
) -> None:
    served = make_manifest("a", write_snapshot(tmp_path / "a"), engine_flags=own)
    stated = [*own, *for_all]
    told = await told_to(launcher(user_flags=list(for_all)), served)
    assert told["arguments"][-len(stated) :] == stated


async def test_vllm_s_own_permission_for_longer_contexts_is_heeded(
    launcher: MakeLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    served = make_manifest("a", write_snapshot(tmp_path / "a"))
    told = await told_to(launcher(user_flags=["--max-model-len", "100000"]), served)
    assert told["arguments"][-2:] == ["--max-model-len", "100000"]


async def test_the_room_for_a_model_is_that_of_the_machine_as_it_is_now(
    launcher: MakeLauncher, manifest: Manifest
) -> None:
    seen = [MACHINE, Machine((replace(MACHINE.devices[0], free=GIB),))]
    maker = launcher(look=lambda: seen.pop(0))
    assert isinstance((await maker.room(manifest, []))({}), Placement)
    assert isinstance((await maker.room(manifest, []))({}), NoPlace)


async def test_there_is_room_anywhere_where_nobody_knows_what_others_hold(
    launcher: MakeLauncher, manifest: Manifest
) -> None:
    assert await launcher().room(manifest, [None]) is anywhere


async def test_what_a_load_took_is_used_for_the_next_plan(launcher: MakeLauncher, manifest: Manifest) -> None:
    maker = launcher()
    found = maker.planner.place(manifest, MACHINE)
    assert isinstance(found, Placement)
    await maker.planner.learn_load(manifest, found, os.getpid())
    again = maker.planner.place(manifest, MACHINE)
    assert isinstance(again, Placement)
    assert again.overhead.is_learned
    assert not found.overhead.is_learned


async def test_a_manifest_cannot_take_the_socket_away(launcher: MakeLauncher, tmp_path: Path) -> None:
    manifest = make_manifest("a", write_snapshot(tmp_path / "a"), engine_flags=("--uds", "/tmp/elsewhere"))
    with pytest.raises(BadEngineFlags, match="--uds is set by vllama"):
        await launcher().start(manifest)


async def test_the_user_s_flags_can_be_checked_before_any_load(launcher: MakeLauncher) -> None:
    async with asyncio.timeout(PATIENCE):
        await launcher("flags_are_fine", user_flags=["--seed", "1"]).check_flags()
        with pytest.raises(BadEngineFlags, match="unrecognized arguments: --foo"):
            await launcher("usage", user_flags=["--foo"]).check_flags()


async def test_without_flags_there_is_nothing_to_check(launcher: MakeLauncher) -> None:
    async with asyncio.timeout(PATIENCE):
        await launcher("usage").check_flags()


def test_directories_that_killed_gateways_left_behind_are_removed(launcher: MakeLauncher, runtime: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    stale, living, other, odd = (
        runtime / name for name in (f"vllama-{dead.pid}-a", f"vllama-{os.getpid()}-a", "other", "vllama-x-y")
    )
    for directory in (stale, living, other, odd):
        directory.mkdir()
        (directory / "1.sock").touch()
    made = launcher().runtime
    assert sorted(runtime.iterdir()) == sorted([living, other, odd, made])


@pytest.mark.parametrize("refused", ["x" * 100, "missing"], ids=["too long for a socket", "not there"])
def test_where_the_runtime_directory_will_not_do_the_temporary_one_does(
    launcher: MakeLauncher,
    runtime: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refused: str,
) -> None:
    if refused != "missing":
        (runtime / refused).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / refused))
    monkeypatch.setattr(tempfile, "tempdir", str(runtime))
    assert launcher().runtime.parent == runtime
    assert f"cannot create sockets in {runtime / refused}: " in caplog.text
    assert refused == "missing" or list((runtime / refused).iterdir()) == []


def test_where_no_directory_will_do_the_server_does_not_start_and_says_why(
    launcher: MakeLauncher, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(prefix: str, dir: str) -> str:  # noqa: A002
        raise PermissionError(errno.EACCES, "Permission denied", dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(VllamaError, match=rf"sockets \({runtime}: Permission denied; .*set XDG_RUNTIME_DIR"):
        launcher()


def test_a_link_among_the_directories_is_not_followed(launcher: MakeLauncher, runtime: Path, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (runtime / f"vllama-{dead.pid}-a").symlink_to(precious)
    (runtime / f"vllama-{dead.pid}-b").symlink_to(tmp_path / "nowhere")
    launcher()
    assert (precious / "file").exists()


def test_the_directory_of_the_sockets_is_private_and_goes_with_the_launcher(launcher: MakeLauncher) -> None:
    made = launcher()
    assert made.runtime.stat().st_mode & 0o777 == 0o700
    made.close()
    assert not made.runtime.exists()


@pytest.mark.parametrize("name", engine_flags.REMOVED_VARIABLES)
def test_a_variable_that_is_not_passed_on_is_said_so(
    launcher: MakeLauncher, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, "1")
    launcher()
    assert f"{name} is not passed to workers" in caplog.text
