"""A campaign: attacks in turn on a server with a real engine, while innocent clients are watched."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import httpx
from engine.server import Server

from hostile.attacks import Kind, Target
from hostile.innocents import Innocents
from vllama.machine.tied import tied

MOST_GAP = 2.0
"""Seconds that an attack may add to the longest wait of an innocent client."""

SETTLED = 20 << 20
"""Bytes that the gateway may keep after a campaign."""

_ATTEMPTS = 3
"""How often an attack is made before a long wait of a client is its consequence: other programs cause some, too."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources of the server: memory in bytes of gateway and worker, and numbers of what its processes hold."""

    gateway: int
    worker: int
    processes: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Result:
    """The consequences of an attack; `gap` is the longest wait of an innocent client in seconds, memory is in bytes.

    Of an attack that was made several times, it is the attempt with the shortest of these waits, or one with errors.
    """

    kind: str
    errors: tuple[str, ...]
    replies: int
    gap: float
    seconds: float
    gateway: int
    worker: int
    descriptors: int
    attempts: int = 1

    def is_fine(self, usual_gap: float) -> bool:
        """Whether no client had an error, and none waited much longer than without an attack."""
        return not self.errors and self.gap <= usual_gap + MOST_GAP


@dataclass(slots=True)
class Report:
    """The results of a campaign, and what the server had before and after it.

    `usual_gap` is the longest wait of an innocent client between attacks, in seconds: a machine may do other work.
    `settled` is the number of bytes that the gateway may keep.
    """

    usual_gap: float
    before: Usage
    results: list[Result]
    after: Usage | None = None
    settled: int = SETTLED

    @property
    def wrong(self) -> list[str]:
        """What went wrong, in words."""
        bad = [result for result in self.results if not result.is_fine(self.usual_gap)]
        found = [f"{result.kind}: {result.errors or f'a gap of {result.gap:.1f} s'}" for result in bad]
        if self.after is None:
            return [*found, "the server did not survive"]
        kept = self.after.gateway - self.before.gateway
        if kept > self.settled:
            found.append(f"the gateway keeps {kept >> 20} MiB")
        left = self.after.descriptors - self.before.descriptors
        if left > 8:
            found.append(f"{left} descriptors are left")
        if self.after.processes > self.before.processes:
            found.append(f"{self.after.processes - self.before.processes} processes are left")
        return found

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def run(
    store: Path,
    model: str,
    kinds: Sequence[Kind],
    number: int,
    seed: int,
    on_result: Callable[[Result], None] = lambda _: None,
    *,
    embedder: str = "",
    environ: Mapping[str, str] | None = None,
    settled: int = SETTLED,
    is_alone: bool = True,
) -> Report:
    """Attack a server of this store so many times; the server ends with this process, even if that is killed.

    Unless it `is_alone`, it is one of the tests' servers, whose workers have imported vLLM before.
    """
    dice = random.Random(seed)
    server = Server(store, environ={"OLLAMA_KEEP_ALIVE": "1h", **(environ or {})}, under=tied() if is_alone else ())
    try:
        server.load(model)
        if embedder:  # before the other clients take the processors
            httpx.post(f"{server.url}/api/embed", json={"model": embedder}, timeout=300).raise_for_status()
        target = Target(server.url, model)
        innocents = Innocents(server.url, model, embedder)
        try:
            innocents.until_each_has(2)
            innocents.renew()
            innocents.until_each_has(8)
            report = Report(max(log.gap for log in innocents.renew()), usage(server), [], settled=settled)
            for index in range(number):
                result = _attempted(server, innocents, kinds[index % len(kinds)], target, dice, report)
                report.results.append(result)
                on_result(result)
        finally:
            innocents.stop()
        report.after = _settled(server, report.before)
        return report
    finally:
        server.close()


def _attempted(
    server: Server, innocents: Innocents, kind: Kind, target: Target, dice: random.Random, report: Report
) -> Result:
    """Attack, and again in the same way while clients wait too long: what the attack causes, it causes each time."""
    variant = dice.getrandbits(64)
    results: list[Result] = []
    while len(results) < _ATTEMPTS:
        innocents.renew()
        innocents.until_each_has(2)
        report.usual_gap = max(report.usual_gap, *(log.gap for log in innocents.renew()))
        results.append(_attacked(server, innocents, kind, target, random.Random(variant)))
        if results[-1].errors or results[-1].is_fine(report.usual_gap):
            return replace(results[-1], attempts=len(results))
    return replace(min(results, key=lambda result: result.gap), attempts=len(results))


def _attacked(server: Server, innocents: Innocents, kind: Kind, target: Target, dice: random.Random) -> Result:
    innocents.renew()
    began = time.monotonic()
    with _Peak(server) as peak:
        kind.attack(target, dice)
        innocents.until_each_has(3)
    logs = innocents.renew()
    return Result(
        kind.name,
        tuple(f"{log.name}: {error}" for log in logs for error in log.errors),
        sum(log.replies for log in logs),
        max(log.gap for log in logs),
        time.monotonic() - began,
        peak.gateway,
        peak.worker,
        peak.descriptors,
    )


class _Peak:
    """The largest memory and number of descriptors within a block."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.gateway = self.worker = self.descriptors = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            now = usage(self._server)
            self.gateway, self.worker = max(self.gateway, now.gateway), max(self.worker, now.worker)
            self.descriptors = max(self.descriptors, now.descriptors)
            if self._ends.wait(0.2):
                return


def usage(server: Server) -> Usage:
    """Look at the server's processes."""
    gateway = server.process.pid
    pids = [process.pid for process in server.tree.living()]
    memory = {pid: _resident(pid) for pid in pids}
    return Usage(
        memory.get(gateway, 0),
        sum(size for pid, size in memory.items() if pid != gateway),
        len(pids),
        _entries(gateway, "fd"),
        _entries(gateway, "task"),
    )


def _settled(server: Server, before: Usage) -> Usage | None:
    """Return what the server holds after the attacks, as soon as that is little, at the latest after 20 seconds."""
    end = time.monotonic() + 20
    while True:
        if server.process.poll() is not None:
            return None
        now = usage(server)
        is_calm = now.gateway - before.gateway <= SETTLED and now.descriptors <= before.descriptors
        if is_calm or time.monotonic() > end:
            return now
        time.sleep(0.5)


def _resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/statm").read_text()
    except OSError:
        return 0
    return int(status.split()[1]) * 4096


def _entries(pid: int, what: str) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/{what}").iterdir()))
    except OSError:
        return 0


def table(report: Report) -> Iterator[str]:
    """The lines of a Markdown table, by kind of attack."""
    yield "| Attack | n | attempts | errors | longest gap | gateway, peak | worker, peak | descriptors, peak |"
    yield "|---|---|---|---|---|---|---|---|"
    for kind in dict.fromkeys(result.kind for result in report.results):
        yield _row(kind, [result for result in report.results if result.kind == kind])
    yield _row("all", report.results)
    yield f"\nWithout an attack: gap {report.usual_gap:.1f} s, gateway {report.before.gateway >> 20} MiB."
    if report.after is not None:
        after, before = report.after, report.before
        yield (
            f"Afterwards: gateway {(after.gateway - before.gateway) / 2**20:+.0f} MiB, "
            f"{after.processes - before.processes:+d} processes, "
            f"{after.descriptors - before.descriptors:+d} descriptors, {after.threads - before.threads:+d} threads."
        )


def _row(name: str, results: Sequence[Result]) -> str:
    cells = [
        name,
        len(results),
        sum(result.attempts for result in results),
        sum(len(result.errors) for result in results),
        f"{max(result.gap for result in results):.1f} s",
        f"{max(result.gateway for result in results) >> 20} MiB",
        f"{max(result.worker for result in results) >> 20} MiB",
        max(result.descriptors for result in results),
    ]
    return f"| {' | '.join(map(str, cells))} |"
