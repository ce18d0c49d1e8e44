"""Measure the CPU cost of the plugin and the gateway, relative to vLLM's own route in the same worker.

It starts a server of its own. CPU time is read from the kernel for the process in question
(`/proc/PID/task/*/schedstat`, ns), so a busy machine does not count. Routes take turns, so a drift of the machine
hits all of them alike.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from vllama.bench.conclusions import conclude
from vllama.bench.design import ExperimentDesign, ProgressListener
from vllama.bench.environment import manifest
from vllama.bench.fleet import Fleet
from vllama.bench.generator import RequestLoad, Target
from vllama.bench.metrics import metrics, ttft_ms, window_of
from vllama.bench.result import ExperimentResult, Run, System
from vllama.errors import RequestError, ServerError
from vllama.machine.tied import tied

VLLM, PLUGIN, GATEWAY = "vllm", "plugin", "gateway"
"""The routes: vLLM's own, the plugin's in the same process, and the plugin's behind the gateway."""

API_SERVER = "api_server"
"""vLLM's API server process among a run's `server_cpu`; the other is GATEWAY."""

_MODEL = "overhead"
_FIRST_TOKENS = 200  # single requests for the time to the first token, each way
_BLOCK = 20  # of them in a row


@dataclass(frozen=True, slots=True)
class Server:
    """A gateway with one worker. `worker` is vLLM's API server process."""

    url: str
    gateway: int
    worker: int
    worker_socket: str


@dataclass(frozen=True, slots=True)
class Route:
    """A way to the engine, and the processes whose CPU time is its cost, by name."""

    name: str
    target: Target
    costs: dict[str, int]


def measure_overhead(model: Path, design: ExperimentDesign, progress: ProgressListener) -> ExperimentResult:
    """Measure the routes to the model in this directory, by the design's greatest concurrency and its repetitions.

    Single requests for one token, `iterations` of them each way, give what the gateway adds to the time to first token.
    Raises RequestError if there is no such model, and ServerError.
    """
    if not (model / "config.json").is_file():
        message = f"--mode overhead starts a server of its own: MODEL must be the directory of a model, not {model}"
        raise RequestError(message)
    clients = max(level.concurrency or 1 for level in design.levels)
    progress("starting the server", 0.0)
    runs: list[Run] = []
    interrupted = False
    with _serving(model) as server, Fleet(design.processes) as fleet:
        routes = _routes(server)
        try:
            for repetition in range(-1, design.repetitions):  # the first is the warm-up
                for route in routes:
                    done = 0.8 * max(repetition, 0) / design.repetitions
                    progress(f"{route.name}, C = {clients}" + (" (warm-up)" if repetition < 0 else ""), done)
                    run = _run(fleet, design, route, clients, repetition)
                    runs += [run] if repetition >= 0 else []
            for block in range(-1, -(-(design.iterations or _FIRST_TOKENS) // _BLOCK)):
                for route in routes[1:]:
                    progress(f"{route.name}: first tokens", 0.8 + 0.002 * max(block, 0))
                    run = _run(fleet, replace(design, output_tokens=1), route, 1, block)
                    runs += [run] if block >= 0 else []
        except KeyboardInterrupt:
            interrupted = True
    systems = tuple(System(route.name, route.target.url, route.target.api, _MODEL) for route in routes)
    # The server has ended, and only this process could have reached its worker: there is nobody left to ask.
    return conclude(replace(design, systems=systems), runs, environment=manifest(()), interrupted=interrupted)


def _routes(server: Server) -> tuple[Route, ...]:
    inside = server.worker_socket
    return (
        Route(VLLM, Target("http://worker", "openai", _MODEL, inside), {API_SERVER: server.worker}),
        Route(PLUGIN, Target("http://worker", "ollama", _MODEL, inside), {API_SERVER: server.worker}),
        Route(
            GATEWAY,
            Target(server.url, "ollama", _MODEL),
            {API_SERVER: server.worker, GATEWAY: server.gateway},
        ),
    )


def _run(fleet: Fleet, design: ExperimentDesign, route: Route, clients: int, repetition: int) -> Run:
    load = RequestLoad(
        target=route.target,
        prompts=replace(design.prompts, salt=f"{design.seed}:{route.name}:{clients}:{repetition}"),
        output_tokens=design.output_tokens,
        clients=clients,
        iterations=clients if clients > 1 else _BLOCK,
        timeout=design.timeout,
    )
    before = {name: cpu_time(pid) for name, pid in route.costs.items()}
    seen = fleet.run(load, lambda ended: ended)
    spent = {name: cpu_time(pid) - before[name] for name, pid in route.costs.items()}
    if seen.interrupted:
        raise KeyboardInterrupt
    window = window_of(seen.samples)
    figures = metrics(seen.samples, (window[1] - window[0]) / 1e9, design.slo)
    if not figures.ok:
        message = f"{route.name}: {seen.samples[0].error or seen.samples[0].outcome}"
        raise ServerError(message)
    return Run(
        route.name,
        "overhead",
        max(repetition, 0),
        window,
        seen.samples,
        figures,
        concurrency=clients,
        model=_MODEL,
        client_cpu=seen.cpu,
        client_processes=seen.processes,
        server_cpu=spent,
    )


def costs_of(result: ExperimentResult) -> dict[str, float]:
    """Return CPU µs per token of each route in the API server, that of the gateway, ratios, and what it adds in ms."""
    most = max((run.concurrency or 0 for run in result.runs), default=0)
    loaded = {name: _runs_of(result, name, most) for name in (VLLM, PLUGIN, GATEWAY)}
    if not all(loaded.values()):
        return {}
    per_token = {name: _us_per_token(runs, API_SERVER) for name, runs in loaded.items()}
    found = {f"{name}_us_per_token": value for name, value in per_token.items()}
    found["gateway_own_us_per_token"] = _us_per_token(loaded[GATEWAY], GATEWAY)
    found |= {f"{name}_ratio": per_token[name] / per_token[VLLM] for name in (PLUGIN, GATEWAY)}
    direct, through = (_median_first(_runs_of(result, name, 1)) for name in (PLUGIN, GATEWAY))
    if direct is not None and through is not None:
        found |= {"ttft_direct_ms": direct, "ttft_gateway_ms": through, "ttft_added_ms": through - direct}
    return found


def table_of(result: ExperimentResult) -> str:
    """Return those costs as a person reads them."""
    cost = costs_of(result)
    if not cost:
        return "no route was measured"
    lines = [
        "CPU time of one process per token",
        f"vLLM's /v1/chat/completions      {cost['vllm_us_per_token']:6.1f} µs",
        f"our /api/chat, plugin alone      {cost['plugin_us_per_token']:6.1f} µs   {cost['plugin_ratio']:.2f} ×",
        f"our /api/chat, through gateway   {cost['gateway_us_per_token']:6.1f} µs   {cost['gateway_ratio']:.2f} ×",
        f"the gateway itself               {cost['gateway_own_us_per_token']:6.1f} µs",
    ]
    if "ttft_added_ms" in cost:
        lines.append(
            f"TTFT p50, 1 client               {cost['ttft_direct_ms']:6.2f} ms direct, "
            f"{cost['ttft_gateway_ms']:.2f} ms through the gateway: {cost['ttft_added_ms']:+.2f} ms"
        )
    return "\n".join(lines)


def _runs_of(result: ExperimentResult, system: str, clients: int) -> list[Run]:
    return [run for run in result.runs if (run.system, run.concurrency) == (system, clients)]


def _us_per_token(runs: Sequence[Run], process: str) -> float:
    tokens = sum(sample.tokens_out or 0 for run in runs for sample in run.samples)
    return sum(run.server_cpu[process] for run in runs) / 1000 / max(tokens, 1)


def _median_first(runs: Sequence[Run]) -> float | None:
    firsts = [first for run in runs for sample in run.samples if (first := ttft_ms(sample)) is not None]
    return statistics.median(firsts) if firsts else None


def cpu_time(pid: int) -> int:
    """CPU time of all threads of a process that still run, in ns."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


@contextlib.contextmanager
def _serving(model: Path) -> Iterator[Server]:
    """Run a gateway with this model, loaded, on a free port and with a store of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as store, tempfile.TemporaryFile("w+") as output:
        gateway = subprocess.Popen(
            tied(sys.executable, "-m", "vllama", "serve", "--port", str(port), "--model", f"{_MODEL}={model}"),
            env={**os.environ, "OLLAMA_MODELS": store, "VLLAMA_SPARE_WORKERS": "0"},
            stdout=output,
            stderr=output,
        )
        try:
            worker, worker_socket = _wait_for_worker(gateway, url)
            yield Server(url, gateway.pid, worker, worker_socket)
        except ServerError:
            output.seek(0)
            sys.stderr.write(output.read())
            raise
        finally:
            gateway.send_signal(signal.SIGTERM)
            gateway.wait(60)


def _wait_for_worker(gateway: subprocess.Popen[bytes], url: str) -> tuple[int, str]:
    load = orjson.dumps({"model": _MODEL})
    while gateway.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/api/generate", data=load, timeout=600):  # noqa: S310 - our own URL
                break
        except urllib.error.HTTPError as error:
            message = f"the model cannot be loaded: {error.read().decode()}"
            raise ServerError(message) from error
        except OSError:
            time.sleep(0.1)  # it does not listen yet
    else:
        raise ServerError("the gateway ended")
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    for child in children:
        arguments = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "--uds" in arguments:
            return int(child), arguments[arguments.index("--uds") + 1]
    raise ServerError("the gateway has no worker")
