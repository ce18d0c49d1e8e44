"""How long a model takes to load, with and without spare workers, forked engines and compiled code.

    python -m vllama.bench.cold_start MODEL_DIRECTORY... [--rounds 3] [-- FLAGS OF vllama serve]

Each load is a request to a gateway that has nothing loaded, and ends when the model has produced a token. All ways
take turns in every round, so that a drift of the machine hits them alike; the table has medians.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import orjson

from vllama.machine.proc import PROC, read_numbers
from vllama.machine.processes import ProcessTree
from vllama.machine.tied import tied

_PATIENCE_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Way:
    """A way to start. `keeps_cache`: what earlier loads of it compiled is there."""

    name: str
    has_spare: bool
    forks: bool
    keeps_cache: bool = True

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make a server start models this way."""
        spawning = {} if self.forks else {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        return {"VLLAMA_SPARE_WORKERS": str(int(self.has_spare)), **spawning}


WAYS = (
    Way("every process imports", has_spare=False, forks=False),
    Way("spare", has_spare=True, forks=False),
    Way("forked engine", has_spare=False, forks=True),
    Way("spare, forked engine", has_spare=True, forks=True),
)
COLD_CACHE = Way("spare, forked engine, nothing compiled yet", has_spare=True, forks=True, keeps_cache=False)


@dataclass(frozen=True, slots=True)
class MeasuredLoad:
    """`seconds` until the first token; bytes that the worker's processes hold then, shared pages in parts (PSS)."""

    seconds: float
    memory: int


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument(
    "models", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True)
)
@click.option("--rounds", default=3, show_default=True)
@click.option("--way", "names", multiple=True, help="Only ways of these names; repeatable.")
@click.option("--flags", default="", help="Flags for vllama serve, in one text.")
@click.option("--json", "as_json", is_flag=True, help="Print all loads as JSON instead of the table.")
def main(models: Sequence[Path], *, rounds: int, names: Sequence[str], flags: str, as_json: bool) -> None:
    """Measure cold starts of the models in MODELS.

    \b
    Example: python -m vllama.bench.cold_start ./tiny-model --rounds 3 --flags "--compile"
    """
    ways = [way for way in (*WAYS, COLD_CACHE) if way.name in names] if names else list(WAYS)
    loads: dict[tuple[str, str], list[MeasuredLoad]] = {}
    with tempfile.TemporaryDirectory() as store:
        for number in range(rounds + 1):  # the first compiles, finds out of architectures, and fills the page cache
            for model in models:
                for way in ways if number else WAYS[-1:]:
                    load = _load(Path(store), model, way, flags.split())
                    print(f"{model.name}: {way.name}: {load.seconds:.1f} s", file=sys.stderr)
                    if number:
                        loads.setdefault((model.name, way.name), []).append(load)
    if as_json:
        result = [
            {"model": model, "way": way, "seconds": [load.seconds for load in some], "memory": [x.memory for x in some]}
            for (model, way), some in loads.items()
        ]
        print(orjson.dumps(result).decode())
    else:
        print(_table(loads))


def _table(loads: dict[tuple[str, str], list[MeasuredLoad]]) -> str:
    lines = ["| model | way | seconds | of the first way | memory, GB |", "|---|---|---|---|---|"]
    bases: dict[str, float] = {}
    for (model, way), some in loads.items():
        seconds = statistics.median(load.seconds for load in some)
        memory = statistics.median(load.memory for load in some) / 1e9
        base = bases.setdefault(model, seconds)
        lines.append(f"| {model} | {way} | {seconds:.1f} | {seconds / base:.2f} | {memory:.2f} |")
    return "\n".join(lines)


def _load(store: Path, model: Path, way: Way, flags: Sequence[str]) -> MeasuredLoad:
    """One load by a server of its own."""
    root = store if way.keeps_cache else Path(tempfile.mkdtemp(dir=store))
    with _serving(root, model.name, model, way, flags) as (server, url):
        if way.has_spare:
            _wait_for_spare(root, server)
        started = time.monotonic()
        body = orjson.dumps({"model": model.name})
        with urllib.request.urlopen(f"{url}/api/generate", data=body, timeout=_PATIENCE_SECONDS):  # noqa: S310
            seconds = time.monotonic() - started
        return MeasuredLoad(seconds, sum(map(_proportional_bytes, ProcessTree(server.pid).pids - {server.pid})))


@contextlib.contextmanager
def _serving(
    store: Path, name: str, model: Path, way: Way, flags: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a gateway with nothing loaded, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OLLAMA_MODELS": str(store), **way.environment}
    vllama = [sys.executable, "-m", "vllama"]
    subprocess.run([*vllama, "pull", name, "--from", str(model)], env=environment, check=True, capture_output=True)
    with (store / "gateway.log").open("wb") as output:
        server = subprocess.Popen(
            tied(*vllama, "serve", "--port", str(port), *flags), env=environment, stdout=output, stderr=output
        )
    try:
        _wait_until_it_listens(server, port)
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def _wait_until_it_listens(server: subprocess.Popen[bytes], port: int) -> None:
    while server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    message = "the gateway ended"
    raise click.ClickException(message)


def _wait_for_spare(store: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            waiting = re.findall(r"^spare (\d+) waits", (store / "logs" / "spare.log").read_text(), re.MULTILINE)
            if not ProcessTree(server.pid).pids.isdisjoint(map(int, waiting)):
                return
        time.sleep(0.05)
    message = "no spare worker came"
    raise click.ClickException(message)


def _proportional_bytes(process: int) -> int:
    return read_numbers(PROC / str(process) / "smaps_rollup").get("Pss", 0) * 1024


if __name__ == "__main__":
    main()
