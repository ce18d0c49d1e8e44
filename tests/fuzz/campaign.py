"""A campaign: requests drawn for each route in turn, sent by several clients at once to a server with a real engine."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from engine.server import Server, Worker
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from fuzz.replies import Reply, ask
from fuzz.requests import Sent, described, requests
from fuzz.routes import Route, routes
from fuzz.values import Names
from fuzz.verdicts import faulty_status, wrong_shape

ENVIRONMENT: Mapping[str, str] = {
    "OLLAMA_KEEP_ALIVE": "1h",
    "OLLAMA_MAX_LOADED_MODELS": "8",
    "HF_HUB_OFFLINE": "1",
    "PIP_NO_INDEX": "1",
}
"""Variables of the server: nothing leaves this machine, and models stay loaded."""

FLAGS = ("--max-model-len", "256")
"""Flags of the server: no reply is long, whatever a request asks for."""

_CLIENTS = 4
_ROUND = 50
"""Requests to one route until the next one has its turn."""
_VICTIMS = ("victim-1", "victim-2")
_LOADING: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("/api/generate", {}),
    ("/api/embed", {"input": "a"}),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}),
)
"""Requests of which a model's workers answer those that they can."""
_SAMPLES = 3
"""Faults of one kind on one route that are kept whole."""


@dataclass(slots=True)
class Tally:
    """The replies of one route. `statuses` counts classes: "2xx", or "none" where no reply was due and none came."""

    route: str
    requests: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    faulty: int = 0
    dropped: int = 0
    shapes: int = 0
    slowest: float = 0.0

    @property
    def is_bad(self) -> bool:
        """Whether a reply was wrong."""
        return bool(self.faulty or self.dropped or self.shapes)


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong reply: what is wrong, the request as latin-1 text in JSON's spelling, and the reply's beginning."""

    route: str
    kind: str
    what: str
    request: str
    reply: str


@dataclass(slots=True)
class Report:
    """The results of a campaign. `deaths` counts processes of the server, `tracebacks` those in the gateway's log."""

    seed: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    deaths: int = 0
    tracebacks: int = 0
    seconds: float = 0.0

    @property
    def requests(self) -> int:
        """The number of requests sent."""
        return sum(tally.requests for tally in self.tallies.values())

    @property
    def wrong(self) -> list[str]:
        """What went wrong, in words."""
        counts = {
            "faulty 5xx": sum(tally.faulty for tally in self.tallies.values()),
            "dropped connections": sum(tally.dropped for tally in self.tallies.values()),
            "replies of another form": sum(tally.shapes for tally in self.tallies.values()),
            "dead processes": self.deaths,
            "tracebacks in the gateway's log": self.tracebacks,
        }
        return [f"{number} {what}" for what, number in counts.items() if number]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


class Campaign:
    """The clients, and what they found."""

    def __init__(self, server: Server, models: Sequence[str], seed: int, seconds: float, only: str = "") -> None:
        """Take a server with these models, which are loaded now; `only` is a text that the routes' names contain.

        `seconds` limits the time of all, and that of loading counts. `report` grows while it runs.
        """
        self._server = server
        self._models = models
        self._keepers = {model: f"kept-{secrets.token_hex(4)}" for model in models}
        self._names = Names(tuple(models), _VICTIMS)
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self.report = Report(seed)
        self._load()
        self._routes = [route for route in self._described() if only in route.name]
        self._room = threading.Semaphore(2 * _CLIENTS)

    def run(self, number: int, on_round: Callable[[Tally], None] = lambda _: None) -> Report:
        """Send about so many requests, fewer if the time ends; routes with a body get more of them."""
        began = time.monotonic()
        for model, keeper in self._keepers.items():
            self._copy(model, keeper)
        shares = {route: 4 if route.media_type else 1 for route in self._routes}
        left = {route: -(-number * share // sum(shares.values())) for route, share in shares.items()}
        index = 0
        while any(left.values()) and self._goes_on():
            for route in self._routes:
                if (size := min(left[route], _ROUND)) and self._goes_on():
                    left[route] -= size
                    self._restore()
                    self._send_round(route, size, self.report.seed * 10_000 + index)
                    self.report.seconds = time.monotonic() - began
                    on_round(self.report.tallies[route.name])
                    index += 1
        self._finish()
        self.report.seconds = time.monotonic() - began
        return self.report

    def _goes_on(self) -> bool:
        return time.monotonic() < self._end and self._server.process.poll() is None

    def _load(self) -> None:
        for model in self._models:
            for path, body in _LOADING:
                self._server.client.post(path, content=json.dumps({"model": model, **body}))

    def _described(self) -> list[Route]:
        workers = []
        for worker in self._server.workers():
            transport = httpx.HTTPTransport(uds=worker.socket)
            with httpx.Client(transport=transport, base_url="http://worker", timeout=60) as client:
                workers.append((self._model_of(worker), client.get("/openapi.json").json()))
        return routes(self._server.client.get("/openapi.json").json(), workers)

    def _model_of(self, worker: Worker) -> str:
        return next(model for model in self._models if model in worker.main.command)

    def _send_round(self, route: Route, size: int, seed: int) -> None:
        running: list[Future[None]] = []
        self.report.tallies.setdefault(route.name, Tally(route.name))
        with ThreadPoolExecutor(_CLIENTS) as clients:

            @seeded(seed)
            @settings(
                max_examples=size,
                database=None,
                deadline=None,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            )
            @given(sent=requests(route, self._names))
            def send(sent: Sent) -> None:
                if len(running) < size and time.monotonic() < self._end:
                    self._room.acquire()
                    running.append(clients.submit(self._one, sent))

            send()
        for each in running:
            each.result()

    def _one(self, sent: Sent) -> None:
        try:
            reply = ask(self._server.url, sent)
        except OSError:
            reply = Reply(problem="dropped")  # the server accepts no connection
        finally:
            self._room.release()
        self._count(sent, reply)

    def _count(self, sent: Sent, reply: Reply) -> None:
        found = {"faulty": faulty_status(sent, reply), "dropped": reply.problem, "shapes": wrong_shape(sent, reply)}
        with self._lock:
            tally = self.report.tallies[sent.route.name]
            tally.requests += 1
            family = f"{reply.status // 100}xx" if reply.status else "none"
            tally.statuses[family] = tally.statuses.get(family, 0) + 1
            tally.slowest = max(tally.slowest, reply.seconds)
            for kind, what in found.items():
                if what:
                    setattr(tally, kind, getattr(tally, kind) + 1)
                    self._keep(Fault(tally.route, kind, what, described(sent), reply.body[:2000].decode("latin-1")))

    def _keep(self, fault: Fault) -> None:
        like = [
            one
            for one in self.report.faults
            if (one.route, one.kind, one.what) == (fault.route, fault.kind, fault.what)
        ]
        if len(like) < _SAMPLES:
            self.report.faults.append(fault)

    def _copy(self, source: str, destination: str) -> None:
        body = json.dumps({"source": source, "destination": destination})
        self._server.client.post("/api/copy", content=body).raise_for_status()

    def _restore(self) -> None:
        """Bring back the models that requests have deleted or replaced."""
        digests = {model["name"]: model["digest"] for model in self._server.client.get("/api/tags").json()["models"]}
        first = self._models[0]
        wanted = self._keepers | {f"{victim}:latest": self._keepers[first] for victim in _VICTIMS}
        for name, keeper in wanted.items():
            if digests.get(name) != digests[f"{keeper}:latest"]:
                self._copy(keeper, name)

    def _finish(self) -> None:
        log = self._server.log
        self.report.deaths = log.count("the worker of ") if self._server.process.poll() is None else 1
        self.report.tracebacks = log.count("Traceback (most recent call last)")


def table(report: Report) -> Iterator[str]:
    """The lines of a Markdown table, by route."""
    yield "| Route | requests | 2xx | 3xx | 4xx | 5xx | no reply due | faulty 5xx | dropped | other form | slowest |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for tally in report.tallies.values():
        yield _row(tally)
    everything = Tally("all")
    for tally in report.tallies.values():
        everything.requests += tally.requests
        for family, count in tally.statuses.items():
            everything.statuses[family] = everything.statuses.get(family, 0) + count
        everything.faulty += tally.faulty
        everything.dropped += tally.dropped
        everything.shapes += tally.shapes
        everything.slowest = max(everything.slowest, tally.slowest)
    yield _row(everything)
    yield f"\nSeed {report.seed}: {report.requests} requests in {report.seconds:.0f} s, {report.deaths} dead processes."


def _row(tally: Tally) -> str:
    statuses = [tally.statuses.get(name, 0) for name in ("2xx", "3xx", "4xx", "5xx", "none")]
    cells = [
        tally.route,
        tally.requests,
        *statuses,
        tally.faulty,
        tally.dropped,
        tally.shapes,
        f"{tally.slowest:.1f} s",
    ]
    return f"| {' | '.join(map(str, cells))} |"
