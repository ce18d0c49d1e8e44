"""Planner of loads from needs, the current machine and measurements."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vllama.machine.processes import ProcessTree, ram_of
from vllama.machine.threads import Threads
from vllama.scheduler import engine_flags
from vllama.scheduler.devices import Machine, held_by, read_machine
from vllama.scheduler.learned import LearnedMemory
from vllama.scheduler.memory import Claim, Device, Need, Placement, Unfit
from vllama.scheduler.need import need_of
from vllama.scheduler.placing import overhead, place
from vllama.scheduler.serving import Serving
from vllama.settings import Settings
from vllama.store.description import describe
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore

log = logging.getLogger(__name__)

_THREADS = 4
"""Threads for measurements, which a driver may delay."""


@dataclass(frozen=True, slots=True)
class Awake:
    """Measurements before a sleep: the machine, and the worker's RAM in bytes."""

    machine: Machine
    ram: int


Look = Callable[[], Machine]
"""Function that reads the machine; tests use their own."""


class Planner:
    """Planner of loads with the settings and flags of one server."""

    def __init__(self, settings: Settings, serving: Serving, *, look: Look | None = None) -> None:
        """Create a planner; measurements are in the server's store. `look` is `read_machine` by default."""
        self._settings = settings
        self._serving = serving
        self._look = look or read_machine
        self._learned = LearnedMemory(settings.models)
        self._threads = Threads("measure", _THREADS)

    def adopt(self, settings: Settings) -> None:
        """Use these settings for plans from now on."""
        self._settings = settings

    async def machine(self) -> Machine | None:
        """Return the current machine; None if it has GPUs that NVML does not report, so that vLLM must decide."""
        found = await self._threads.run(self.look)
        if not found.is_known:
            log.warning("cannot plan memory, so one model may take a whole GPU: %s", found.reason)
            return None
        return found

    def look(self) -> Machine:
        """Return the current machine."""
        found = self._look()
        return replace(found, is_known=found.has_gpu or not engine_flags.has_gpu())

    def need(self, manifest: Manifest, machine: Machine) -> Need:
        """Return the model's needs on this machine. Raises ManifestCorrupt if a file is damaged or missing."""
        rank = self._serving.adapter_rank(manifest, ModelStore(self._settings.models).list())
        return need_of(
            manifest,
            self._settings,
            self._serving.flags(manifest, rank),
            dtype=engine_flags.computing_type(describe(manifest), on_cpu=not machine.has_gpu),
            on_cpu=not machine.has_gpu,
            learned=self._learned.of(self._serving.engine_of(manifest)),
        )

    def place(self, manifest: Manifest, machine: Machine, claims: Sequence[Claim] = ()) -> Placement | Unfit:
        """Return the model's placement beside these claims, or why it does not fit. Raises ManifestCorrupt."""
        return place(self.need(manifest, machine), machine.devices, claims)

    async def learn_load(self, manifest: Manifest, placement: Placement, pid: int) -> Placement:
        """Measure a worker that has just become ready, with main process `pid`.

        Returns the placement with the overhead as it is. Where NVML cannot tell processes apart, as in a container,
        what was free when the load was planned counts.
        """
        held = await self._threads.run(self._held, placement, pid)
        if held is None:
            held = await self._threads.run(self._taken_since, placement.devices, placement)
        if held > 0:
            self._learned.note_load(self._serving.engine_of(manifest), placement, held)
        return self._relearned(manifest, placement)

    def knows_sleep(self, manifest: Manifest, placement: Placement) -> bool:
        """Return whether the worker's memory during sleep has been measured."""
        known = self._learned.of(self._serving.engine_of(manifest)).get(placement.devices[0].name)
        return known is not None and known.residue > 0

    async def before_sleep(self, pid: int) -> Awake | None:
        """Measure a worker before its first sleep; return None if nothing is planned."""
        machine = await self.machine()
        return None if machine is None else Awake(machine, await self._threads.run(_ram_of, pid))

    async def learn_sleep(self, manifest: Manifest, placement: Placement, pid: int, before: Awake) -> Placement:
        """Measure a sleeping worker and return the placement with its memory during sleep.

        Its weights are in the host's memory now, whatever the kernel says.
        """
        taken = await self._threads.run(_ram_of, pid) - before.ram
        host = max(taken, placement.weights * len(placement.devices))
        held = await self._threads.run(self._held, placement, pid)
        if held is None:
            given_back = -await self._threads.run(self._taken_since, before.machine.devices, placement)
            held = placement.weights + placement.kv + placement.overhead.fixed - given_back
        if held > 0:
            self._learned.note_sleep(self._serving.engine_of(manifest), placement, held, host)
        return self._relearned(manifest, placement)

    def _relearned(self, manifest: Manifest, placement: Placement) -> Placement:
        need = replace(placement.need, learned=self._learned.of(self._serving.engine_of(manifest)))
        return replace(placement, need=need).with_overhead(overhead(need, placement.devices[0], placement.spread))

    def _held(self, placement: Placement, pid: int) -> int | None:
        """Return the maximum that a worker holds on one of its devices; None if unknown."""
        if placement.devices[0].kind == "cpu":
            return _ram_of(pid) // len(placement.devices)  # each rank's part of what all of them hold
        found = held_by(ProcessTree(pid).pids)
        return None if found is None else max(found.get(device.index, 0) for device in placement.devices)

    def _taken_since(self, before: Sequence[Device], placement: Placement) -> int:
        """Return the decrease of free memory on the first device of a placement; negative for an increase."""
        first = placement.devices[0].index
        was, now = (
            next((device.free for device in devices if device.index == first), 0)
            for devices in (before, self.look().devices)
        )
        return was - now


def _ram_of(pid: int) -> int:
    """Return the RAM of a worker's tree, including memory pinned by CUDA, which is unnamed shared memory."""
    return ram_of(ProcessTree(pid).pids)
