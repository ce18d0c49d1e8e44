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
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import orjson

from vllama.bench.stream_client import Plan, Sample

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
    """A way to the engine, and the process whose CPU time is its cost."""

    name: str
    url: str
    socket: str
    body: str
    pid: int


@dataclass(slots=True)
class Cost:
    """Sums over all rounds. `cpu` is ns of the route's process."""

    cpu: int = 0
    tokens: int = 0
    chunks: int = 0
    seconds: float = 0.0

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
@click.option("--first-tokens", default=100, show_default=True, help="Requests for the time to first token, per way.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def main(model: Path, *, clients: int, tokens: int, rounds: int, first_tokens: int, as_json: bool) -> None:
    """Measure the overhead of the dialect and the gateway with the model in MODEL.

    \b
    Example: python -m vllama.bench.overhead ./tiny-model --rounds 3
    """
    with _serving(model) as server:
        costs = _measure_routes(server, clients, tokens, rounds)
        ttft = _measure_first_tokens(server, first_tokens)
    result = {
        "ours_us_per_token": costs["ours"].per_token,
        "vllm_us_per_token": costs["vllm"].per_token,
        "ratio": costs["ours"].per_token / costs["vllm"].per_token,
        "gateway_us_per_chunk": costs["gateway"].per_chunk,
        "ttft_direct_ms": ttft["direct"] * 1000,
        "ttft_gateway_ms": ttft["gateway"] * 1000,
        "ttft_added_ms": (ttft["gateway"] - ttft["direct"]) * 1000,
        "tokens_per_second": {name: cost.tokens / cost.seconds for name, cost in costs.items()},
        "tokens_per_chunk": {name: cost.tokens / max(cost.chunks, 1) for name, cost in costs.items()},
        "clients": clients,
        "tokens": tokens,
        "rounds": rounds,
    }
    print(orjson.dumps(result).decode() if as_json else _table(result))


def _table(r: dict[str, object]) -> str:
    rate, size = r["tokens_per_second"], r["tokens_per_chunk"]
    return (
        f"{r['clients']} clients, {r['tokens']} tokens a reply, {r['rounds']} rounds each, CPU time of one process\n\n"
        f"vLLM's /v1/chat/completions   {r['vllm_us_per_token']:6.1f} µs per token\n"
        f"our /api/chat, same worker    {r['ours_us_per_token']:6.1f} µs per token    {r['ratio']:.2f} × vLLM's\n"
        f"gateway                       {r['gateway_us_per_chunk']:6.1f} µs per forwarded chunk\n"
        f"TTFT p50, 1 client            {r['ttft_direct_ms']:6.2f} ms direct, {r['ttft_gateway_ms']:.2f} ms through "
        f"the gateway: {r['ttft_added_ms']:+.2f} ms\n\n"
        + "\n".join(f"{name:<8} {rate[name]:7.0f} tok/s  {size[name]:.2f} tokens per chunk" for name in rate)  # type: ignore[index,attr-defined]
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
    inside = "http://worker"
    routes = [
        Route("vllm", f"{inside}/v1/chat/completions", server.worker_socket, openai, server.worker),
        Route("ours", f"{inside}/api/chat", server.worker_socket, native, server.worker),
        Route("gateway", f"{server.url}/api/chat", "", native, server.gateway),
    ]
    costs = {route.name: Cost() for route in routes}
    for number in range(rounds + 1):
        for route in routes:
            before = cpu_time(route.pid)
            sample = _run_client(Plan(route.url, route.socket, route.body, clients, 1))
            spent = cpu_time(route.pid) - before
            if number == 0:
                continue  # warm-up
            cost = costs[route.name]
            cost.cpu += spent
            cost.tokens += sample.tokens
            cost.chunks += sample.chunks
            cost.seconds += sample.seconds
    return costs


def _measure_first_tokens(server: Server, count: int) -> dict[str, float]:
    """The median time to first token of single requests, in seconds, both ways in turns."""
    body = orjson.dumps({"model": _MODEL, "messages": _MESSAGES, "options": {"num_predict": 1}}).decode()
    ttft: dict[str, list[float]] = {"direct": [], "gateway": []}
    share = max(count // 10, 1)
    for _ in range(10):
        ttft["direct"] += _run_client(Plan("http://worker/api/chat", server.worker_socket, body, 1, share)).ttft[1:]
        ttft["gateway"] += _run_client(Plan(f"{server.url}/api/chat", "", body, 1, share)).ttft[1:]
    return {way: statistics.median(times) for way, times in ttft.items()}


def _run_client(plan: Plan) -> Sample:
    command = [sys.executable, "-m", "vllama.bench.stream_client", orjson.dumps(asdict(plan)).decode()]
    done = subprocess.run(command, check=True, capture_output=True, timeout=600)
    sample = Sample(**orjson.loads(done.stdout))
    if sample.failures or not sample.tokens:
        message = f"{sample.failures} requests to {plan.url} failed"
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
        except OSError:
            time.sleep(0.1)
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    for child in children:
        arguments = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "--uds" in arguments:
            return int(child), arguments[arguments.index("--uds") + 1]
    message = "the gateway has no worker"
    raise RuntimeError(message)


if __name__ == "__main__":
    main()
