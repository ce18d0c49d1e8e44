"""The processes of the load generator, and how one load is spread over them."""

from __future__ import annotations

import queue
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Thread
from types import TracebackType
from typing import Any, Self

import orjson

from vllama.bench.dataclass_json import read
from vllama.bench.generator import GeneratorReport, KeptReply, RequestLoad
from vllama.bench.result import Sample
from vllama.errors import ServerError

CLIENTS_PER_PROCESS = 128
CHUNKS_PER_PROCESS = 20_000
"""Chunks per second that one process is trusted with: half of what it was measured to take."""

_HEAD_START = 20_000_000  # ns from the order to start to the start
_PATIENCE = 30.0  # seconds that a process has to end


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """What all processes saw of one load. `cpu` is the share of a core that the busiest one used."""

    samples: tuple[Sample, ...]
    kept: tuple[KeptReply, ...]
    cpu: float
    processes: int
    interrupted: bool


def processes_for(load: RequestLoad) -> int:
    """Return how many processes this load needs."""
    if load.rate is None:
        return -(-load.clients // CLIENTS_PER_PROCESS)
    return max(1, -(-int(load.rate * load.output_tokens) // CHUNKS_PER_PROCESS))


def split(load: RequestLoad, count: int) -> list[RequestLoad]:
    """Return the parts of a load that together are the load."""
    if load.rate is None:
        count = min(count, load.clients)
    return [
        replace(
            load,
            turn=turn,
            stride=count,
            clients=_share(load.clients, count, turn) if load.rate is None else 1,
            iterations=None if load.iterations is None else _share(load.iterations, count, turn),
            keep_texts=_share(load.keep_texts, count, turn),
        )
        for turn in range(count)
    ]


def _share(whole: int, count: int, turn: int) -> int:
    return whole // count + (turn < whole % count)


class Fleet:
    """Starts processes when they are needed and keeps them; leave it, and they end.

    `processes` is how many there are for every load; None: as many as it needs.
    """

    def __init__(self, processes: int | None = None) -> None:
        self._count = processes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._answers: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            if process.stdin:
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()

    def ask(self, load: RequestLoad, server: str) -> Sample:
        """Send the one request of a load and return its sample; `server` names the server in errors.

        Raises ServerError if the request fails, KeyboardInterrupt if Ctrl-C ended it.
        """
        seen = self.run(load, lambda ended: ended)
        if seen.interrupted:
            raise KeyboardInterrupt
        (sample,) = seen.samples
        if sample.outcome != "ok":
            message = f"{server}: {sample.error or sample.outcome}"
            raise ServerError(message)
        return sample

    def run(self, load: RequestLoad, progress: Callable[[int], object]) -> LoadOutcome:
        """Carry out a load; `progress` hears how many requests have ended. Ctrl-C ends it early, with what there is.

        Raises ServerError if the warm-up fails.
        """
        parts = split(load, self._count or processes_for(load))
        self._start(len(parts))
        for turn, part in enumerate(parts):
            self._tell(turn, part)
        collector = _Collector(len(parts), progress)
        interrupted = False
        while not collector.complete:
            try:
                turn, answer = self._answers.get()
                if answer is None:
                    message = "a process of the load generator ended; its last words are above"
                    raise ServerError(message)
                collector.take(turn, answer)
                if collector.all_ready:
                    self._tell_all(len(parts), {"start": time.monotonic_ns() + _HEAD_START})
                if collector.failure and not collector.stopped:
                    collector.stopped = True
                    self._tell_all(len(parts), {"stop": True}, besides=collector.reported)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                self._tell_all(len(parts), {"stop": True}, besides=collector.reported)
        if collector.failure:
            raise ServerError(collector.failure)
        return collector.seen(interrupted=interrupted)

    def _start(self, count: int) -> None:
        while len(self._processes) < count:
            process = subprocess.Popen(
                [sys.executable, "-m", "vllama.bench.generator_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for us; we tell them
            )
            Thread(target=self._listen, args=(len(self._processes), process), daemon=True).start()
            self._processes.append(process)

    def _listen(self, turn: int, process: subprocess.Popen[bytes]) -> None:
        for line in process.stdout or ():
            self._answers.put((turn, orjson.loads(line)))
        self._answers.put((turn, None))

    def _tell(self, turn: int, order: Any) -> None:
        pipe = self._processes[turn].stdin
        if pipe:
            pipe.write(orjson.dumps(order) + b"\n")
            pipe.flush()

    def _tell_all(self, count: int, order: Any, besides: set[int] | None = None) -> None:
        for turn in range(count):
            if not besides or turn not in besides:
                self._tell(turn, order)


class _Collector:
    """Puts together what the processes answer."""

    def __init__(self, count: int, progress: Callable[[int], object]) -> None:
        self._count = count
        self._progress = progress
        self._ready: set[int] = set()
        self._started = False
        self._ended = [0] * count
        self._reports: dict[int, GeneratorReport] = {}
        self._failed: dict[int, str] = {}
        self.stopped = False

    @property
    def complete(self) -> bool:
        return len(self.reported) == self._count

    @property
    def reported(self) -> set[int]:
        """Those that have said all of this load."""
        return self._reports.keys() | self._failed.keys()

    @property
    def failure(self) -> str:
        return next(iter(self._failed.values()), "")

    @property
    def all_ready(self) -> bool:
        """Whether all are ready; true only once."""
        if self._started or len(self._ready) < self._count:
            return False
        self._started = True
        return True

    def take(self, turn: int, answer: dict[str, Any]) -> None:
        if "ready" in answer:
            self._ready.add(turn)
        elif "failed" in answer:
            self._failed[turn] = str(answer["failed"])
        elif "ended" in answer:
            self._ended[turn] = answer["ended"]
            self._progress(sum(self._ended))
        else:
            self._reports[turn] = read(GeneratorReport, answer, "report")
            self._ended[turn] = len(self._reports[turn].samples)
            self._progress(sum(self._ended))

    def seen(self, *, interrupted: bool) -> LoadOutcome:
        samples: list[Sample] = []
        kept: list[KeptReply] = []
        for turn in sorted(self._reports):
            report = self._reports[turn]
            kept += (replace(one, sample=one.sample + len(samples)) for one in report.kept)
            samples += report.samples
        busiest = max((report.cpu for report in self._reports.values()), default=0.0)
        return LoadOutcome(tuple(samples), tuple(kept), busiest, self._count, interrupted)
