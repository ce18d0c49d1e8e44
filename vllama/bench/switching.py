"""How long a client waits when a server has to switch between two models that take turns on one machine.

    python -m vllama.bench.switching MODEL_A MODEL_B --switches 50 --cold 4 --json result.json

The server runs already, and has room for one model awake (OLLAMA_MAX_LOADED_MODELS=1): then each request to the other
model is a switch. The two are asked in turns; of each switch the time to first token counts, as a client sees it over
`/api/chat`. All answers of a model, which are greedy, must be its first one: damage in sleep would show there.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx

from vllama.bench.dialects import server_times
from vllama.bench.gpus import Gpus
from vllama.bench.metrics import distribution, ttft_ms
from vllama.bench.model_loads import unload
from vllama.bench.result import Sample
from vllama.errors import VllamaError
from vllama.keys.credentials import credentials
from vllama.machine.host import host_memory
from vllama.settings import Address

PROMPT = "Name the capital of France, and one river that flows through it."


@dataclass(frozen=True, slots=True)
class Switch:
    """One request to a model that was not awake, with its answer.

    `memory` is the bytes in use when the answer was complete: of each GPU, or of RAM on a machine without GPUs.
    """

    kind: str
    model: str
    sample: Sample
    text: str
    is_same: bool
    memory: dict[str, int]


@dataclass(slots=True)
class SwitchingResult:
    """All that was measured; `memory_before` is that of the idle server."""

    url: str
    models: list[str]
    memory_before: dict[str, int]
    switches: list[Switch] = field(default_factory=list)

    def of(self, kind: str) -> list[Switch]:
        """Return the switches of a kind, in order."""
        return [switch for switch in self.switches if switch.kind == kind]


@dataclass(slots=True)
class SwitchingClient:
    """Asks one server, and knows each model's first answer."""

    http: httpx.Client
    tokens: int
    prompt: str = PROMPT
    clock: Callable[[], int] = time.monotonic_ns
    memory: Callable[[], dict[str, int]] = dict
    first_answers: dict[str, str] = field(default_factory=dict)

    def ask(self, kind: str, model: str) -> Switch:
        """Stream one greedy answer. Raises click.ClickException where it is an error or no answer."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": self.prompt}],
            "stream": True,
            "options": {"temperature": 0, "seed": 1, "num_predict": self.tokens},
        }
        start, text, final = self.clock(), "", dict[str, Any]()
        first: int | None = None
        with self.http.stream("POST", "/api/chat", json=body) as reply:
            for line in reply.iter_lines():
                record = json.loads(line)
                if "error" in record:
                    raise click.ClickException(f"{model}: {record['error']}")
                message = record.get("message", {})
                piece = message.get("thinking", "") + message.get("content", "")
                if first is None and piece:
                    first = self.clock()
                text, final = text + piece, record
        if not final.get("done") or not text:
            raise click.ClickException(f"{model} gave no whole answer")
        return Switch(
            kind=kind,
            model=model,
            sample=Sample(start, start, first, self.clock(), "ok", server=server_times(final)),
            text=text,
            is_same=text == self.first_answers.setdefault(model, text),
            memory=self.memory(),
        )


def measure(client: SwitchingClient, url: str, models: Sequence[str], *, switches: int, cold: int) -> SwitchingResult:
    """Load both, let both sleep once (kind "first"), switch in turns ("switch"), and load some afresh ("cold")."""
    result = SwitchingResult(url, list(models), client.memory())

    def ask(kind: str, model: str) -> None:
        switch = client.ask(kind, model)
        result.switches.append(switch)
        same = "" if switch.is_same else "  ANOTHER ANSWER"
        click.echo(
            f"{kind:>6}  {model}  {(ttft_ms(switch.sample) or 0) / 1000:8.3f} s  {switch.text[:40]!r}{same}", err=True
        )

    for kind in ("load", "first"):
        for model in models:
            ask(kind, model)
    for model in itertools.islice(itertools.cycle(models), switches):
        ask("switch", model)
    for model in itertools.islice(itertools.cycle(models), cold):
        for each in models:
            unload(url, each)
        ask("cold", model)
    return result


def summary(result: SwitchingResult) -> dict[str, Any]:
    """Return counts, and the distribution of the time to first token of each kind of switch, as in all of the bench."""
    kinds = {}
    for kind in dict.fromkeys(switch.kind for switch in result.switches):
        if times := distribution(ttft_ms(switch.sample) for switch in result.of(kind)):
            kinds[kind] = {"count": times.n, "ttft_ms": asdict(times)}
    wrong = sum(not switch.is_same for switch in result.switches)
    most = {name: max(switch.memory[name] for switch in result.switches) for name in result.memory_before}
    return {"kinds": kinds, "other_answers": wrong, "memory_before": result.memory_before, "memory_most": most}


def as_table(told: dict[str, Any]) -> str:
    """Return the summary as a Markdown table."""
    lines = ["| switch | count | TTFT p50 | p99 | max |", "|---|---|---|---|---|"]
    for kind, row in told["kinds"].items():
        p50, p99, longest = (row["ttft_ms"][name] / 1000 for name in ("p50", "p99", "max"))
        lines.append(f"| {kind} | {row['count']} | {p50:.3f} s | {p99:.3f} s | {longest:.3f} s |")
    lines += ["", "| memory in use | before | most |", "|---|---|---|"]
    lines += [
        f"| {name} | {before / 2**30:.1f} GiB | {told['memory_most'][name] / 2**30:.1f} GiB |"
        for name, before in told["memory_before"].items()
    ]
    return "\n".join([*lines, "", f"answers unlike the first of their model: {told['other_answers']}"])


def memory_reader() -> Callable[[], dict[str, int]]:
    """Return a function that reads the bytes in use on each GPU of this machine, or in its RAM where it has none."""
    gpus = Gpus()
    if not len(gpus):
        return lambda: {"RAM": (ram := host_memory()).total - ram.free}
    suffix = "_memory_bytes"
    return lambda: {
        name.removesuffix(suffix): int(value or 0) for name, value in gpus.read().items() if name.endswith(suffix)
    }


@click.command(
    epilog="""\b
Example, against `OLLAMA_MAX_LOADED_MODELS=1 vllama serve`:
  scripts/switching qwen2.5:7b llama3.1:8b --switches 50 --cold 4 --json switching.json"""
)
@click.argument("models", nargs=2, metavar="MODEL_A MODEL_B")
@click.option("--url", default="", help="The server; OLLAMA_HOST or http://127.0.0.1:11434 unless given.")
@click.option("--switches", default=50, show_default=True, type=click.IntRange(0), help="Switches to measure.")
@click.option("--cold", default=0, type=click.IntRange(0), help="Loads to measure after them, both models stopped.")
@click.option("--tokens", default=16, show_default=True, type=click.IntRange(1), help="Tokens of each answer.")
@click.option("--prompt", default=PROMPT, help="What the models are asked.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write all that was measured.")
def main(
    models: tuple[str, str], *, url: str, switches: int, cold: int, tokens: int, prompt: str, path: Path | None
) -> None:
    """Switch between two models of a running server and print how long a client waits.

    The loads and the first sleep of each model are reported apart from the switches. The exit code is 1 if a model's
    answer changed.
    """
    url = url or Address.parse(os.environ.get("OLLAMA_HOST", "")).url
    with httpx.Client(headers=credentials(), base_url=url, timeout=httpx.Timeout(10, read=900)) as http:
        client = SwitchingClient(http, tokens, prompt, memory=memory_reader())
        try:
            result = measure(client, url, models, switches=switches, cold=cold)
        except VllamaError as error:
            raise click.ClickException(str(error)) from error
    told = summary(result)
    if path is not None:
        path.write_text(json.dumps({**asdict(result), "summary": told}, ensure_ascii=False, indent=2) + "\n")
    click.echo(as_table(told))
    sys.exit(1 if told["other_answers"] else 0)


if __name__ == "__main__":
    main()
