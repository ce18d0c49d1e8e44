"""What the dialect and the gateway cost, against vLLM's own route in the same worker.

    python -m vllama.bench.overhead MODEL_DIRECTORY [--clients 64] [--tokens 128] [--rounds 5]

CPU time is read from the kernel for the process in question (`/proc/PID/task/*/schedstat`, ns), so a busy machine
does not count. Routes take turns, so a drift of the machine hits all of them alike.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import orjson

from vllama.bench.stream_client import Plan, Sample, Target

_MODEL = "overhead"
# Alike on both routes, and the cheapest: what the engine spends on sampling slows all of them.
_SAMPLING = {"temperature": 0, "top_k": 0, "top_p": 1.0}
_MESSAGES = [{"role": "user", "content": "Tell me a story about a lighthouse keeper and the sea."}]


@dataclass(frozen=True, slots=True)
class Server:
    """A gateway with one worker. `worker` is vLLM's API server process."""

    url: str
    gateway: int
    worker: int
    worker_socket: str


@dataclass(frozen=True, slots=True)
class Route:
    """A way to the engine, and the processes whose CPU time is its cost, by the name of the cost."""

    target: Target
    body: str
    costs: dict[str, int]


@dataclass(slots=True)
class Cost:
    """Sums over all rounds. `cpu` is ns of the route's process."""

    cpu: int = 0
    tokens: int = 0
    chunks: int = 0
    seconds: float = 0.0

    def add(self, cpu: int, sample: Sample) -> None:
        """Count a round."""
        self.cpu += cpu
        self.tokens += sample.tokens
        self.chunks += sample.chunks
        self.seconds += sample.seconds

    @property
    def per_token(self) -> float:
        """CPU µs per token."""
        return self.cpu / 1000 / max(self.tokens, 1)

    @property
    def per_chunk(self) -> float:
        """CPU µs per chunk."""
        return self.cpu / 1000 / max(self.chunks, 1)


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--clients", default=64, show_default=True)
@click.option("--tokens", default=128, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--first-tokens", default=200, show_default=True, help="Requests for the time to first token, per way.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def main(model: Path, *, clients: int, tokens: int, rounds: int, first_tokens: int, as_json: bool) -> None:
    """Measure the overhead of the dialect and the gateway with the model in MODEL.

    \b
    Example: python -m vllama.bench.overhead ./tiny-model --rounds 3
    """
    with _serving(model) as server:
        costs = _measure_routes(server, clients, tokens, rounds)
        direct, through = _measure_first_tokens(server, first_tokens)
    vllm, plugin, channel, gateway = (costs[name] for name in ("vllm", "plugin", "channel", "gateway"))
    result = {
        "vllm_us_per_token": vllm.per_token,
        "plugin_us_per_token": plugin.per_token,
        "plugin_ratio": plugin.per_token / vllm.per_token,
        "channel_us_per_token": channel.per_token,
        "channel_ratio": channel.per_token / vllm.per_token,
        "gateway_us_per_chunk": gateway.per_chunk,
        "ttft_direct_ms": direct * 1000,
        "ttft_gateway_ms": through * 1000,
        "ttft_added_ms": (through - direct) * 1000,
        "tokens_per_second": {name: cost.tokens / cost.seconds for name, cost in costs.items()},
        "tokens_per_chunk": {name: cost.tokens / max(cost.chunks, 1) for name, cost in costs.items()},
        "clients": clients,
        "tokens": tokens,
        "rounds": rounds,
    }
    print(orjson.dumps(result).decode() if as_json else _table(result))


def _table(r: dict[str, Any]) -> str:
    rate = r["tokens_per_second"]
    return (
        f"{r['clients']} clients, {r['tokens']} tokens a reply, {r['rounds']} rounds each; CPU time of one process\n\n"
        f"vLLM's /v1/chat/completions      {r['vllm_us_per_token']:6.1f} µs per token               "
        f"{rate['vllm']:6.0f} tok/s\n"
        f"our /api/chat, plugin alone      {r['plugin_us_per_token']:6.1f} µs per token   "
        f"{r['plugin_ratio']:.2f} × vLLM's  {rate['plugin']:6.0f} tok/s\n"
        f"our /api/chat, behind gateway    {r['channel_us_per_token']:6.1f} µs per token   "
        f"{r['channel_ratio']:.2f} × vLLM's  {rate['channel']:6.0f} tok/s\n"
        f"the gateway                      {r['gateway_us_per_chunk']:6.1f} µs per forwarded chunk\n"
        f"TTFT p50, 1 client               {r['ttft_direct_ms']:6.2f} ms direct, {r['ttft_gateway_ms']:.2f} ms through "
        f"the gateway: {r['ttft_added_ms']:+.2f} ms"
    )


def _measure_routes(server: Server, clients: int, tokens: int, rounds: int) -> dict[str, Cost]:
    native = orjson.dumps(
        {"model": _MODEL, "messages": _MESSAGES, "options": {**_SAMPLING, "num_predict": tokens}}
    ).decode()
    openai = orjson.dumps(
        {
            "model": _MODEL,
            "messages": _MESSAGES,
            "stream": True,
            "max_tokens": tokens,
            **_SAMPLING,
            "stream_options": {"include_usage": True},
        }
    ).decode()
    inside = server.worker_socket
    routes = [
        Route(Target("http://worker/v1/chat/completions", inside), openai, {"vllm": server.worker}),
        Route(Target("http://worker/api/chat", inside), native, {"plugin": server.worker}),
        Route(Target(f"{server.url}/api/chat", ""), native, {"channel": server.worker, "gateway": server.gateway}),
    ]
    costs = {name: Cost() for route in routes for name in route.costs}
    for number in range(rounds + 1):
        for route in routes:
            before = {name: cpu_time(pid) for name, pid in route.costs.items()}
            sample = _run_client(Plan([route.target], route.body, clients, 1))
            if number == 0:
                continue  # warm-up
            for name, pid in route.costs.items():
                costs[name].add(cpu_time(pid) - before[name], sample)
    return costs


def _measure_first_tokens(server: Server, count: int) -> tuple[float, float]:
    """The median time to first token of single requests, in seconds: direct and through the gateway, in turns."""
    body = orjson.dumps({"model": _MODEL, "messages": _MESSAGES, "options": {**_SAMPLING, "num_predict": 1}}).decode()
    targets = [Target("http://worker/api/chat", server.worker_socket), Target(f"{server.url}/api/chat", "")]
    direct, through = _run_client(Plan(targets, body, 1, count + 5)).ttft
    return statistics.median(direct[5:]), statistics.median(through[5:])


def _run_client(plan: Plan) -> Sample:
    command = [sys.executable, "-m", "vllama.bench.stream_client", orjson.dumps(asdict(plan)).decode()]
    done = subprocess.run(command, check=True, capture_output=True, timeout=600)
    sample = Sample(**orjson.loads(done.stdout))
    if sample.failures or not sample.tokens:
        message = f"{sample.failures} requests to {plan.targets} failed"
        raise click.ClickException(message)
    return sample


def cpu_time(pid: int) -> int:
    """CPU time of all threads of a process that still run, in ns."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


@contextlib.contextmanager
def _serving(model: Path) -> Iterator[Server]:
    """A gateway with this model, ready, on a free port and with a store of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as store, tempfile.TemporaryFile("w+") as output:
        gateway = subprocess.Popen(
            [sys.executable, "-m", "vllama", "serve", "--port", str(port), "--model", f"{_MODEL}={model}"],
            env={**os.environ, "OLLAMA_MODELS": store},
            stdout=output,
            stderr=output,
        )
        try:
            worker, worker_socket = _wait_for_worker(gateway, url)
            yield Server(url, gateway.pid, worker, worker_socket)
        except RuntimeError:
            output.seek(0)
            print(output.read(), file=sys.stderr)
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
            raise RuntimeError(f"the model cannot be loaded: {error.read().decode()}") from error
        except OSError:
            time.sleep(0.1)  # it does not listen yet
    else:
        raise RuntimeError("the gateway ended")
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    for child in children:
        arguments = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "--uds" in arguments:
            return int(child), arguments[arguments.index("--uds") + 1]
    message = "the gateway has no worker"
    raise RuntimeError(message)


if __name__ == "__main__":
    main()
