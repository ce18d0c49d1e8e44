"""Processes that pull, create, copy, delete and collect in one store until they are killed.

Arguments: the store's directory, and snapshot directories to make models of. Prints how many were killed, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
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

ROUNDS, PROCESSES = 21, 3
LONGEST_LIFE_SECONDS = 0.2


def work(store: ModelStore, snapshots: list[Path], chance: random.Random) -> None:
    """Change the store for ever; `one` is only read."""
    while True:
        name = ModelName.parse(chance.choice(("a", "b", "c")))
        base = chance.choice(("one", "a", "b", "c"))
        try:
            match chance.randrange(6):
                case 0:
                    upload_and_create(store, name, chance.choice(snapshots))
                case 1:
                    list(create(store, name, Changes(system=str(chance.random())), base=base))
                case 2:
                    store.copy(ModelName.parse(base), name)
                case 3:
                    delete(store, name)
                case 4:
                    list(pull(store, name, from_path=chance.choice(snapshots)))
                case _:
                    collect(store, partial=True)
        except VllamaError:
            continue  # another process was faster


def main() -> None:
    """Kill each process after a random time, three at a time; check all names after each round."""
    store, snapshots = ModelStore(Path(sys.argv[1])), [Path(path) for path in sys.argv[2:]]
    kills = 0
    for number in range(ROUNDS):
        children = []
        for which in range(PROCESSES):
            chance = random.Random(number * PROCESSES + which)
            child = os.fork()
            if not child:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.001, LONGEST_LIFE_SECONDS))  # its signal kills
                work(store, snapshots, chance)
            children.append(child)
        kills += sum(os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGALRM for child in children)
        broken = [manifest.name.display for manifest in store.list() if manifest.damaged_files()]
        if broken or "one:latest" not in {manifest.name.display for manifest in store.list()}:
            sys.exit(f"round {number}: {broken}")
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main()
