"""A server with models to break: what faults are made of, and what may be left when they are over."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from engine.processes import Process, wait_for
from engine.server import RUNNING, Server, Worker

from faults.clients import Ask, Crowd, Outcome, send
from vllama.names import ModelName
from vllama.scheduler.group import shared_memory
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

MODEL = "tiny:latest"
HUNGRY, STARVED = "hungry:latest", "starved:latest"
"""One asks for more KV cache than any machine has, the other gets less than a single request needs."""
LOGLESS = "logless:latest"
"""Its worker's log is on a full disk, or cannot be opened."""
DAMAGED, SHARDLESS = "damaged:latest", "shardless:latest"

HANG_SECONDS = 10
LOAD_SECONDS = 60
ENVIRONMENT = {
    "VLLAMA_HANG_TIMEOUT": f"{HANG_SECONDS}s",
    "OLLAMA_LOAD_TIMEOUT": f"{LOAD_SECONDS}s",
    "OLLAMA_KEEP_ALIVE": "1h",
    "VLLAMA_SPARE_WORKERS": "1",
}
RECOVERY = 180.0
"""Seconds within which the service has to be back."""
GONE = 20.0
"""Seconds in which all that a dead worker had must have gone."""


def stock(store: ModelStore, snapshot: Path) -> None:
    """Put the models of a campaign into a store: a snapshot that works, and what becomes of it in worse hands."""
    sound = _take_in(store, MODEL, snapshot)
    for name, kv_cache in ((HUNGRY, 10**14), (STARVED, 10**5)):
        flags = ("--kv-cache-memory-bytes", str(kv_cache), "--max-model-len", "2048")
        store.put(replace(sound, name=ModelName.parse(name), engine_flags=flags))
    store.put(replace(sound, name=ModelName.parse(LOGLESS), engine_flags=("--seed", "7")))
    for name, file in ((DAMAGED, "config.json"), (SHARDLESS, "model.safetensors")):
        copy = store.root / "broken" / name.partition(":")[0]
        shutil.copytree(snapshot, copy, symlinks=False)
        broken = _take_in(store, name, copy).snapshot / file
        text = broken.read_bytes()
        broken.unlink()
        if name == DAMAGED:
            broken.write_bytes(text[: len(text) // 2])


def _take_in(store: ModelStore, name: str, snapshot: Path) -> Manifest:
    for _ in pull(store, ModelName.parse(name), from_path=snapshot):
        pass
    return store.get(ModelName.parse(name))


class Scene:
    """One fault's scene: a server, the clients that were sent to it, and when the fault was injected."""

    def __init__(self, server: Server, dice: random.Random) -> None:
        self.server = server
        self.dice = dice
        self.crowds: list[Crowd] = []
        self.injected_at = time.monotonic()
        self._segments: set[Path] = set()

    def loaded(self) -> Worker:
        """The model's worker, loaded where it is not."""
        self.until_answered()
        return self.server.worker(MODEL)

    def unloaded(self) -> None:
        """Have no model loaded, and no worker left."""
        for name in self.server.loaded():
            self.server.ask("/api/generate", {"model": name, "keep_alive": 0})
        wait_for(lambda: not self.server.workers(), "the workers end", GONE)

    def send(self, asks: list[Ask], model: str = MODEL) -> Crowd:
        """Send clients."""
        crowd = Crowd(self.server.url, model)
        crowd.send(asks)
        self.crowds.append(crowd)
        return crowd

    def streams(self, worker: Worker, number: int = 6) -> Crowd:
        """Send clients, and return when the first stream has begun and the engine works on all requests."""
        asks = [Ask("/api/chat", stream=True, tokens=4000)]
        for _ in range(number - 1):
            path = self.dice.choice(["/api/chat", "/api/generate", "/v1/chat/completions"])
            asks.append(Ask(path, stream=self.dice.random() < 0.7, tokens=4000))
        crowd = self.send(asks)
        wait_for(crowd.begun.is_set, "a stream begins", 60)
        with suppress(AssertionError):  # some may have ended already
            wait_for(lambda: worker.metric(RUNNING) >= number, "the engine works on all", 10)
        return crowd

    def first_worker(self) -> Worker:
        """The worker of the load that has just begun."""
        return wait_for(self.server.workers, "a worker starts", 60)[0]

    def engine_of(self, worker: Worker) -> Process | None:
        """The worker's EngineCore; None where it has none yet."""
        members = self.server.tree.living()  # a worker that was seen as it started may have led no session yet
        session = next((p.session for p in members if p.pid == worker.main.pid), None)
        return next((p for p in members if p.session == session and "EngineCore" in p.title), None)

    def wait_for_engine(self, worker: Worker) -> Process:
        """EngineCore, as soon as it is there."""
        found = wait_for(lambda: self.engine_of(worker), "EngineCore starts", 120)
        assert found is not None
        return found

    def pause(self, most: float) -> None:
        """Let up to so many seconds pass, so that a fault hits each time something else."""
        time.sleep(self.dice.uniform(0, most))

    def kill(self, process: Process) -> None:
        """End a process now."""
        self._signal(process, signal.SIGKILL)

    def stop(self, process: Process) -> None:
        """Have it hang."""
        self._signal(process, signal.SIGSTOP)

    def _signal(self, process: Process, number: signal.Signals) -> None:
        self._segments |= self._mapped()
        self.injected()
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def injected(self) -> None:
        """The fault is there now."""
        self.injected_at = time.monotonic()

    def until_answered(self) -> None:
        """Ask for a few tokens until they come. Fails after RECOVERY seconds."""
        ask = Ask("/api/chat", stream=False, tokens=4)

        def answered() -> bool:
            return send(self.server.url, MODEL, ask).outcome is Outcome.COMPLETE

        wait_for(answered, "the service is back", RECOVERY)

    # What may be left

    def orphans(self) -> list[str]:
        """Processes that belong to nobody: to no worker that is loaded, and to no spare."""
        found: list[Process] = []

        def look() -> bool:
            nonlocal found
            members = self.server.tree.living()
            leaders = {p.session for p in members if p.parent == self.server.process.pid and p.pid == p.session}
            mine = {self.server.process.pid}
            found = [p for p in members if p.session not in leaders and p.pid not in mine]
            surplus = len(self.server.workers()) - len(self.server.loaded())
            return not found and surplus <= 0

        with suppress(AssertionError):
            wait_for(look, "what belongs to dead workers ends", GONE)
            return []
        return [f"{p.pid} {p.title[:60]}" for p in found] or ["more workers than models that are loaded"]

    def left_files(self) -> list[str]:
        """Sockets in the server's directory that no process has bound, and shared memory that none has mapped."""
        mapped = self._mapped()
        return [*self._dead_sockets(), *(path.name for path in self._segments - mapped if path.exists())]

    def _mapped(self) -> set[Path]:
        sessions = {process.session for process in self.server.tree.living()}
        return set[Path]().union(*(shared_memory(session) for session in sessions))

    def _dead_sockets(self) -> list[str]:
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        bound = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
        directories = base.glob(f"vllama-{self.server.process.pid}-*")
        return [path.name for directory in directories for path in directory.iterdir() if str(path) not in bound]

    def leases(self) -> int:
        """Requests that still hold the model: only while there are some does its expiry move with the clock."""

        def expiries() -> list[str]:
            models = self.server.client.get("/api/ps").json()["models"]
            return [model["expires_at"] for model in models]

        def rest() -> bool:
            before = expiries()
            time.sleep(0.01)
            return expiries() == before

        with suppress(AssertionError):
            wait_for(rest, "nobody holds the model", 10)
            return 0
        return 1

    def running(self) -> int:
        """Requests that the engine still works on."""
        worker = self.server.worker(MODEL)
        with suppress(AssertionError):
            wait_for(lambda: worker.metric(RUNNING) == 0, "the engine is idle", 10)
            return 0
        return int(worker.metric(RUNNING))
