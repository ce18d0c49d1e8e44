"""Processes that pull, create, copy, delete and collect in one store until they are killed.

Arguments: the store's directory, a repository on the Hub, and snapshot directories to make models of. Prints how many
were killed, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllama.errors import VllamaError
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.create import create
from vllama.store.garbage import collect, delete
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

sys.path.insert(0, str(Path(__file__).parents[1]))
from store.upload import upload_and_create

PROCESSES = 3
"""At a time."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Rounds whose processes live up to `seconds`, or twice as long as a pull from the Hub takes here."""

    rounds: int
    seconds: float
    pulls_from_hub: bool


PHASES = (Phase(rounds=62, seconds=0.2, pulls_from_hub=False), Phase(rounds=8, seconds=2.0, pulls_from_hub=True))
KILLS = PROCESSES * sum(phase.rounds for phase in PHASES)


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


def kill_some(number: int, phase: Phase, store: ModelStore, repository: ModelName, snapshots: list[Path]) -> int:
    """Let processes work, each to be killed after a random time; return how many were."""
    children = []
    for which in range(PROCESSES):
        chance = random.Random(number * PROCESSES + which)
        child = os.fork()
        if not child:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.001, phase.seconds))  # its signal kills
            work(store, repository, snapshots, chance, pulls_from_hub=phase.pulls_from_hub)
        children.append(child)
    return sum(os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGALRM for child in children)


def main(root: str, repository: str, *snapshots: str) -> None:
    """Kill in rounds, and check all names after each."""
    store = ModelStore(Path(root))
    started = time.monotonic()
    list(pull(store, ModelName.parse(repository)))
    of_a_pull = time.monotonic() - started
    phases = [replace(it, seconds=max(it.seconds, 2 * of_a_pull)) if it.pulls_from_hub else it for it in PHASES]
    rounds: Sequence[Phase] = [phase for phase in phases for _ in range(phase.rounds)]
    kills = 0
    for number, phase in enumerate(rounds):
        kills += kill_some(number, phase, store, ModelName.parse(repository), [Path(path) for path in snapshots])
        broken = [manifest.name.display for manifest in store.list() if manifest.damaged_files()]
        if broken or "one:latest" not in {manifest.name.display for manifest in store.list()}:
            sys.exit(f"round {number}: {broken}")
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main(*sys.argv[1:])
