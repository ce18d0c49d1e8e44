"""Processes that pull, create, copy, delete and collect in one store until they are killed.

Arguments: the store's directory, a repository on the Hub, and snapshot directories to make models of. Prints how many
were killed, as JSON.

A life is measured in calls to the operating system, not in seconds: processes get as far on a busy machine as on an
idle one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllama.errors import VllamaError
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.create import create
from vllama.store.garbage import collect, delete
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

sys.path.insert(0, str(Path(__file__).parents[1]))
from sampling import count

from store.upload import upload_and_create

PROCESSES = 3
"""How many run at a time."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Rounds of processes, each killed up to `seconds` after one of its first `calls` calls."""

    rounds: int
    calls: int
    seconds: float
    pulls_from_hub: bool = False


LOCAL = Phase(rounds=count(15, 62), calls=600, seconds=0.002)
PULLS_FROM_HUB = 2
"""How many pulls from the Hub a process of the second phase may complete."""
HUB_ROUNDS = count(3, 8)
KILLS = PROCESSES * (LOCAL.rounds + HUB_ROUNDS)


class Calls:
    """Counts this process's calls to the operating system, as far as Python's audit events tell of them."""

    def __init__(self) -> None:
        self.made = 0
        self._fatal = 0
        self._seconds = 0.0
        sys.addaudithook(self._count)

    def kill_after(self, calls: int, seconds: float) -> None:
        """Kill this process so many seconds after so many more calls."""
        self._fatal, self._seconds = self.made + calls, seconds

    def _count(self, _event: str, _arguments: tuple[Any, ...]) -> None:
        self.made += 1
        if self.made == self._fatal:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)  # its signal kills


def work(
    store: ModelStore, repository: ModelName, snapshots: list[Path], chance: random.Random, *, pulls_from_hub: bool
) -> None:
    """Change the store for ever; `one` is only read."""
    names = [ModelName.parse(name) for name in ("a", "b", "c")] + [repository] * pulls_from_hub
    while True:
        name = chance.choice(names)
        base = chance.choice([ModelName.parse("one"), *names])
        try:
            match chance.randrange(12 if pulls_from_hub else 6):
                case 0:
                    upload_and_create(store, name, chance.choice(snapshots))
                case 1:
                    list(create(store, name, Changes(system=str(chance.random())), base=base.display))
                case 2:
                    store.copy(base, name)
                case 3:
                    delete(store, name)
                case 4:
                    list(pull(store, name, from_path=chance.choice(snapshots)))
                case 5:
                    collect(store, partial=True)
                case _:
                    list(pull(store, repository, force=chance.random() < 0.5))
        except VllamaError:
            continue  # another process was faster


def kill_some(
    calls: Calls, number: int, phase: Phase, store: ModelStore, repository: ModelName, snapshots: list[Path]
) -> int:
    """Let processes work, each to be killed at a random instant; return how many were."""
    children = []
    for which in range(PROCESSES):
        chance = random.Random(number * PROCESSES + which)
        child = os.fork()
        if not child:
            calls.kill_after(chance.randint(1, phase.calls), chance.uniform(1e-6, phase.seconds))
            work(store, repository, snapshots, chance, pulls_from_hub=phase.pulls_from_hub)
        children.append(child)
    return sum(os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGALRM for child in children)


def main(root: str, repository: str, *snapshots: str) -> None:
    """Kill in rounds, and check all names after each."""
    store, name = ModelStore(Path(root)), ModelName.parse(repository)
    calls = Calls()
    list(pull(store, name))
    hub = Phase(HUB_ROUNDS, PULLS_FROM_HUB * calls.made, seconds=0.2, pulls_from_hub=True)
    rounds = [phase for phase in (LOCAL, hub) for _ in range(phase.rounds)]
    kills = 0
    for number, phase in enumerate(rounds):
        kills += kill_some(calls, number, phase, store, name, [Path(path) for path in snapshots])
        broken = [manifest.name.display for manifest in store.list() if manifest.damaged_files()]
        if broken or "one:latest" not in {manifest.name.display for manifest in store.list()}:
            sys.exit(f"round {number}: {broken}")
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main(*sys.argv[1:])
