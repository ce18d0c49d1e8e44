"""`vllama serve` as users run it: a process, its workers, and what clients see of it."""

from __future__ import annotations

import itertools
import json
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from engine.prepared.request import ONE_THREAD, unconfigured
from engine.prepared.starting import start_alone, start_prepared
from engine.processes import MARK, Process, ProcessTree, wait_for
from vllama.scheduler.engine_flags import has_gpu

Record = dict[str, Any]

TIMEOUT = 240.0
"""Seconds for one request, a load among them: several times what it takes."""

_LISTENS = re.compile(r"is listening on (http://\S+)")
_numbers = itertools.count(1)


def environment(models: Path, mark: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which nothing but `models` and `extra` configures vllama and vLLM.

    No spare workers unless `extra` says so: they would import beside the tests. No C++ compiler, either: nothing but a
    server with `--compile` may need one.
    """
    return {
        **unconfigured(),
        "OLLAMA_MODELS": str(models),
        "VLLAMA_SPARE_WORKERS": "0",
        MARK: mark,
        **(extra or {}),
    }


RUNNING = "vllm:num_requests_running"
FINISHED = "vllm:request_success_total"
"""Counts requests that came to their end; those that were aborted are not among them."""


def metric(client: httpx.Client, name: str) -> float:
    """Return the sum of a metric over its labels, from vLLM's own /metrics."""
    values = [
        float(line.rpartition(" ")[2])
        for line in client.get("/metrics").text.splitlines()
        if line.startswith((f"{name}{{", f"{name} "))
    ]
    assert values, f"no metric {name}"
    return sum(values)


@dataclass(frozen=True, slots=True)
class Worker:
    """One loaded model's process tree, seen from outside."""

    main: Process
    socket: str

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels, from vLLM's own /metrics."""
        transport = httpx.HTTPTransport(uds=self.socket)
        with httpx.Client(transport=transport, base_url="http://worker", timeout=30) as client:
            return metric(client, name)


class Server:
    """A running `vllama serve`. `store` is its model store; stop it, or leave that to whoever made it.

    Its workers are forked from a process that has imported vLLM, unless it is `cold`, prepares spares of its own, or
    runs `under` a command that runs the server as itself, such as `strace -D`. Those compute on all cores.
    """

    def __init__(
        self,
        store: Path,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
        cold: bool = False,
    ) -> None:
        mark = secrets.token_hex(8)
        self.store = store
        self.tree = ProcessTree(mark)
        self.log_path = store / f"serve-{next(_numbers)}.log"
        command = ["serve", "--port", "0", *arguments]
        variables = environment(store, mark, environ)
        with self.log_path.open("wb") as log:
            if cold or under or variables["VLLAMA_SPARE_WORKERS"] != "0" or has_gpu():  # NVML does not survive a fork
                variables = {name: value for name, value in variables.items() if name not in ONE_THREAD}
                self.process = start_alone([*under, sys.executable, "-m", "vllama", *command], variables, log)
            else:
                self.process = start_prepared(command, variables, log)
        self._client: httpx.Client | None = None
        self._making_client = threading.Lock()

    @property
    def log(self) -> str:
        """All that it has printed."""
        return self.log_path.read_text(errors="replace")

    @property
    def url(self) -> str:
        """Where it listens; waits until it does."""
        found = wait_for(lambda: _LISTENS.search(self.log) or self.process.poll() is not None, "the server listens", 30)
        assert isinstance(found, re.Match), f"the server ended:\n{self.log}"
        return found.group(1)

    @property
    def client(self) -> httpx.Client:
        """A client of it, made at the first use."""
        with self._making_client:  # tests ask from several threads; a second client would never be closed
            if self._client is None:
                self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT)
        return self._client

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Post JSON as `curl -d` does: with a Content-Type that says nothing of JSON."""
        typed = {"content-type": "application/x-www-form-urlencoded", **headers}
        return self.client.post(path, content=json.dumps(body), headers=typed)

    def ask(self, path: str, body: Record) -> Record:
        """Post with `stream: false` and return the one record."""
        reply = self.post(path, {"stream": False, **body})
        assert reply.status_code == 200, reply.text
        record: Record = reply.json()
        return record

    def records(self, path: str, body: Record) -> list[Record]:
        """Post and return the records of the stream."""
        reply = self.post(path, body)
        assert reply.status_code == 200, reply.text
        return [json.loads(line) for line in reply.text.splitlines()]

    @staticmethod
    def last_record(reply: httpx.Response) -> Record:
        """The last record of a stream, or the only one."""
        record: Record = json.loads(reply.text.splitlines()[-1])
        return record

    def refusal(self, path: str, body: Any) -> tuple[int, str]:
        """Post and return status and text of the error, whose body must be Ollama's `{"error": …}`."""
        reply = self.post(path, body)
        assert reply.headers["content-type"] == "application/json; charset=utf-8"
        error = reply.json()
        assert list(error) == ["error"]
        return reply.status_code, error["error"]

    @contextmanager
    def stream(self, path: str, body: Record) -> Iterator[Iterator[Record]]:
        """Post and yield an iterator over the records as they come; leaving the block leaves the server."""
        with (
            httpx.Client(base_url=self.url, timeout=TIMEOUT) as client,
            client.stream("POST", path, content=json.dumps(body)) as reply,
        ):
            if reply.status_code != 200:
                reply.read()
            assert reply.status_code == 200, reply.text
            yield (json.loads(line) for line in reply.iter_lines())

    def load(self, model: str, **fields: Any) -> Worker:
        """Load a model, wait until it is ready, and return its worker."""
        record = self.ask("/api/generate", {"model": model, **fields})
        assert record["done_reason"] == "load", record
        return self.worker(model)

    def worker(self, model: str) -> Worker:
        """The worker of a loaded model."""
        return next(worker for worker in self.workers() if model in worker.main.command)

    def workers(self) -> list[Worker]:
        """All workers, loaded or loading."""
        children = [process for process in self.tree.living() if process.parent == self.process.pid]
        commands = [(process, process.command) for process in children]  # read once: it may end, or change its title
        return [
            Worker(process, command[command.index("--uds") + 1]) for process, command in commands if "--uds" in command
        ]

    def engines(self) -> list[Process]:
        """All processes that compute."""
        return [process for process in self.tree.living() if "EngineCore" in process.title]

    def spares(self) -> list[Process]:
        """All spare workers, also those that still import."""
        return [process for process in self.tree.living() if process.command[-1:] == ["--spare"]]

    def waiting_spare(self) -> Process:
        """The spare worker, once it has imported what it needs."""
        output = self.store / "logs" / "spare.log"

        def waits() -> bool:
            return any(f"spare {spare.pid} waits" in output.read_text() for spare in self.spares())

        wait_for(waits, "a spare waits", 120)
        return self.spares()[0]

    def loaded(self) -> list[str]:
        """The names that /api/ps gives."""
        return [model["name"] for model in self.client.get("/api/ps").json()["models"]]

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 60) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(seconds)

    def close(self) -> None:
        """End it and all that belongs to it; for cleaning up."""
        if self._client is not None:
            self._client.close()
        if self.process.poll() is None:
            self.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.wait(60)
        self.tree.kill()
        self.process.wait()
