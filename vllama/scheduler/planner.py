"""From a model's name to its place: needs, this machine, and what was learned here, put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vllama.machine.processes import ProcessTree, ram_of
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


@dataclass(frozen=True, slots=True)
class Awake:
    """What is measured before a worker falls asleep: the machine, and the bytes of RAM that the worker holds."""

    machine: Machine
    ram: int


Look = Callable[[], Machine]
"""What looks at the machine; tests have their own."""


class Planner:
    """Plans loads with the settings and flags of one server."""

    def __init__(self, settings: Settings, serving: Serving, *, look: Look | None = None) -> None:
        """Take what the server has; what was learned is in its store. `look` is `read_machine` unless given."""
        self._settings = settings
        self._serving = serving
        self._look = look or read_machine
        self._learned = LearnedMemory(settings.models)

    def adopt(self, settings: Settings) -> None:
        """Plan by these settings from now on."""
        self._settings = settings

    async def machine(self) -> Machine | None:
        """The machine as it is now; None where it has GPUs that NVML does not know, and vLLM has to see for itself."""
        found = await asyncio.to_thread(self.look)
        if not found.is_known:
            log.warning("loads are not planned, and one model may take a whole GPU: %s", found.reason)
            return None
        return found

    def look(self) -> Machine:
        """The machine as it is now."""
        found = self._look()
        return replace(found, is_known=found.has_gpu or not engine_flags.has_gpu())

    def need(self, manifest: Manifest, machine: Machine) -> Need:
        """What the model needs on this machine. Raises ManifestCorrupt where a file is damaged or missing."""
        rank = self._serving.adapter_rank(manifest, ModelStore(self._settings.models).list())
        return need_of(
            manifest,
            self._settings,
            self._serving.flags(manifest, rank),
            dtype=engine_flags.computing_type(describe(manifest), on_cpu=not machine.has_gpu),
            learned=self._learned.of(self._serving.engine_of(manifest)),
        )

    def place(self, manifest: Manifest, machine: Machine, claims: Sequence[Claim] = ()) -> Placement | Unfit:
        """Where the model goes beside these claims, or why nowhere. Raises ManifestCorrupt."""
        return place(self.need(manifest, machine), machine.devices, claims)

    async def learn_load(self, manifest: Manifest, placement: Placement, pid: int) -> Placement:
        """Measure a worker that has just become ready; `pid` is its main process.

        Returns the placement with the overhead as it is. Where NVML cannot tell processes apart, as in a container,
        what was free when the load was planned counts.
        """
        held = await asyncio.to_thread(self._held, placement, pid)
        if held is None:
            held = await asyncio.to_thread(self._taken_since, placement.devices, placement)
        if held > 0:
            self._learned.note_load(self._serving.engine_of(manifest), placement, held)
        return self._relearned(manifest, placement)

    def knows_sleep(self, manifest: Manifest, placement: Placement) -> bool:
        """Whether it has been measured what the worker keeps in its sleep."""
        known = self._learned.of(self._serving.engine_of(manifest)).get(placement.devices[0].name)
        return known is not None and known.residue > 0

    async def before_sleep(self, pid: int) -> Awake | None:
        """Measure a worker that is about to fall asleep for the first time; None where nothing is planned."""
        machine = await self.machine()
        return None if machine is None else Awake(machine, await asyncio.to_thread(_ram_of, pid))

    async def learn_sleep(self, manifest: Manifest, placement: Placement, pid: int, before: Awake) -> Placement:
        """Measure a worker that has just fallen asleep; returns the placement with what it keeps in its sleep.

        Its weights are in the host's memory now, whatever the kernel says.
        """
        taken = await asyncio.to_thread(_ram_of, pid) - before.ram
        host = max(taken, placement.weights * len(placement.devices))
        held = await asyncio.to_thread(self._held, placement, pid)
        if held is None:
            given_back = -await asyncio.to_thread(self._taken_since, before.machine.devices, placement)
            held = placement.weights + placement.kv + placement.overhead.fixed - given_back
        if held > 0:
            self._learned.note_sleep(self._serving.engine_of(manifest), placement, held, host)
        return self._relearned(manifest, placement)

    def _relearned(self, manifest: Manifest, placement: Placement) -> Placement:
        need = replace(placement.need, learned=self._learned.of(self._serving.engine_of(manifest)))
        return replace(placement, need=need).with_overhead(overhead(need, placement.devices[0], placement.spread))

    def _held(self, placement: Placement, pid: int) -> int | None:
        """The most that a worker holds on one of its devices; None where that cannot be known."""
        if placement.devices[0].kind == "cpu":
            return _ram_of(pid)
        found = held_by(ProcessTree(pid).pids)
        return None if found is None else max(found.get(device.index, 0) for device in placement.devices)

    def _taken_since(self, before: Sequence[Device], placement: Placement) -> int:
        """How much less is free now on the first device of a placement; negative where more is."""
        first = placement.devices[0].index
        was, now = (
            next((device.free for device in devices if device.index == first), 0)
            for devices in (before, self.look().devices)
        )
        return was - now


def _ram_of(pid: int) -> int:
    """The RAM of a worker's tree. The memory that CUDA pins counts: it is shared memory without a name."""
    return ram_of(ProcessTree(pid).pids)
