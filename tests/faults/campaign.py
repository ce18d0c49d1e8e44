"""A campaign: faults in an order that a seed decides, and what came of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from engine.server import Server

from faults.clients import Outcome
from faults.kinds import KINDS, Kind
from faults.scene import ENVIRONMENT, Scene
from vllama.machine.tied import tied


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one fault. `outcomes` counts the clients' replies, `said` has the errors that they were told.

    `files` are the sockets and the shared memory that were left. `recovery` are the seconds from the fault to the next
    answer, None where there was none in time.
    """

    kind: str
    outcomes: dict[str, int]
    said: tuple[str, ...]
    recovery: float | None
    orphans: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    leases: int = 0
    running: int = 0
    trouble: str = ""

    @property
    def is_fine(self) -> bool:
        """Every client got a reply or a proper error, the service is back, and nothing is left."""
        bad = self.outcomes.get(Outcome.HUNG, 0) + self.outcomes.get(Outcome.IMPROPER, 0)
        left = self.orphans or self.files or self.leases or self.running
        return not (bad or left or self.trouble or self.recovery is None)


def drawn(number: int, dice: random.Random) -> list[Kind]:
    """So many kinds in a random order, each as often as its weight wants; each at least once where there is room."""
    total = sum(kind.weight for kind in KINDS)
    due = sorted(KINDS, key=lambda kind: -kind.weight)
    chosen = due[:number]
    while len(chosen) < number:
        chosen.append(max(due, key=lambda kind: kind.weight * number / total - chosen.count(kind)))
    dice.shuffle(chosen)
    return chosen


def run(
    store: Path,
    number: int,
    seed: int,
    on_result: Callable[[Result], None],
    *,
    only: Sequence[str] = (),
    skip: int = 0,
    seconds: float = inf,
    environ: Mapping[str, str] | None = None,
) -> list[Result]:
    """Inject so many faults into a server of this store, which `scene.stock` has filled.

    The first `skip` of them are left out, and what would come after so many seconds. `environ` is for the server,
    which ends with this process, even if that is killed.
    """
    dice = random.Random(seed)
    kinds = drawn(number, dice) if not only else [kind for kind in KINDS if kind.name in only] * number
    server = Server(store, environ={**ENVIRONMENT, **(environ or {})}, under=tied())
    results: list[Result] = []
    end = time.monotonic() + seconds
    try:
        for kind in kinds[skip:number]:
            if time.monotonic() > end:
                break
            results.append(_one(server, kind, dice))
            on_result(results[-1])
    finally:
        server.close()
    return results


def _one(server: Server, kind: Kind, dice: random.Random) -> Result:
    scene = Scene(server, dice)
    trouble, recovery = "", None
    try:
        kind.inject(scene)
    except AssertionError as error:
        trouble = f"the fault could not be injected: {error}"
    replies = [reply for crowd in scene.crowds for reply in crowd.wait()]
    try:
        scene.until_answered()
        recovery = time.monotonic() - scene.injected_at
    except AssertionError as error:
        trouble = trouble or str(error)
    outcomes = {outcome.value: sum(reply.outcome is outcome for reply in replies) for outcome in Outcome}
    found: dict[str, Any] = {}
    if recovery is not None:
        found = {"leases": scene.leases(), "running": scene.running()}
    return Result(
        kind=kind.name,
        outcomes={name: count for name, count in outcomes.items() if count},
        said=tuple(sorted({reply.said for reply in replies if reply.said})),
        recovery=recovery,
        orphans=tuple(scene.orphans()),
        files=tuple(scene.left_files()),
        trouble=trouble,
        **found,
    )


def table(results: Sequence[Result]) -> Iterator[str]:
    """The lines of a Markdown table, by kind, and their sum."""
    yield f"| {' | '.join(_HEADS)} |"
    yield "|---" * len(_HEADS) + "|"
    kinds = [kind.name for kind in KINDS if any(result.kind == kind.name for result in results)]
    for kind in kinds:
        yield _row(kind, [result for result in results if result.kind == kind])
    yield _row("all", results)


_HEADS = (
    "Fault", "n", "complete", "proper errors", "left", "improper", "hung", "orphans", "files", "leases",
    "back after, p50", "max",
)  # fmt: skip


def _row(name: str, results: Sequence[Result]) -> str:
    def count(outcome: Outcome) -> int:
        return sum(result.outcomes.get(outcome.value, 0) for result in results)

    back = [result.recovery for result in results if result.recovery is not None]
    times = [f"{median(back):.1f} s", f"{max(back):.1f} s"] if len(back) == len(results) else ["never", "never"]
    cells = [
        name,
        len(results),
        *(
            count(outcome)
            for outcome in (Outcome.COMPLETE, Outcome.ERROR, Outcome.LEFT, Outcome.IMPROPER, Outcome.HUNG)
        ),
        sum(len(result.orphans) for result in results),
        sum(len(result.files) for result in results),
        sum(result.leases + result.running for result in results),
        *times,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """For a file."""
    return [asdict(result) for result in results]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Result]:
    """Back from a file."""
    lists = ("said", "orphans", "files")
    return [Result(**(row | {key: tuple(row[key]) for key in lists})) for row in rows]
