"""What the checks of GPU machines share: models whose greedy text is known, servers over them, and a table of steps."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.processes import Process
from engine.server import Server

from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

ROOT = Path(__file__).resolve().parent.parent

TOKENS = 64
"""Tokens of each text that is checked."""

KEEPS_MULTICAST_OFF = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
"""Variables that must reach the workers: on some hosts a program that uses NVLink multicast stops all GPUs."""

SEVEN_BILLION = {"hidden": 3584, "intermediate": 18944, "layers": 28, "heads": 28, "kv_heads": 4}
SMALL = {"hidden": 512, "intermediate": 1024, "layers": 2, "heads": 8, "kv_heads": 4}


@dataclass
class Step:
    """What came of a step: what was wrong, how long it took, and what was measured."""

    name: str
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def check(self, right: bool, what: str) -> None:
        """Note what is wrong."""
        if not right:
            self.wrong.append(what)


class Bench:
    """A store, models of known text in it, and servers over them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.on_cpu: bool = options.cpu
        self.clients: list[int] = [int(number) for number in options.clients.split(",")]
        self.work: Path = options.work.resolve()
        self.tokenizer: Path = options.tokenizer
        self.store = ModelStore(self.work / "models")
        self.words: dict[str, list[str]] = {}

    def make(self, name: str, seed: int, shape: Mapping[str, int] = SEVEN_BILLION) -> Path:
        """Put a model of this shape, or a small one where there is no GPU, into the store, and return its folder."""
        snapshot = self.work / name
        if not (snapshot / "known_text.json").exists():
            say(f"making {name}")
            flags = [f"--{key.replace('_', '-')}={value}" for key, value in (SMALL if self.on_cpu else shape).items()]
            device = "cpu" if self.on_cpu else "cuda"
            script = str(ROOT / "tests/known_text_model.py")
            command = [sys.executable, script, str(self.tokenizer), str(snapshot), *flags]
            subprocess.run([*command, f"--seed={seed}", f"--device={device}"], check=True)
        self.bring(name, snapshot, snapshot)
        return snapshot

    def bring(self, name: str, source: Path, known: Path) -> None:
        """Put a folder or a GGUF file into the store, which writes the text of the model in the folder `known`."""
        for _ in pull(self.store, ModelName.parse(name), from_path=source):
            pass
        self.words[name] = json.loads((known / "known_text.json").read_text(encoding="utf-8"))

    @contextmanager
    def server(self, *flags: str, **environ: str) -> Iterator[Server]:
        """A server with these flags of vLLM; checks that nothing of it is left behind."""
        few = ["--max-model-len", "2048"]
        if self.on_cpu:
            few += ["--kv-cache-memory-bytes", "200000000"]
        own = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
        environ = {**KEEPS_MULTICAST_OFF, **own, **environ}
        server = Server(self.store.root, *few, *flags, environ=environ, cold=True)
        try:
            yield server
        finally:
            server.close()
        left = [process.title for process in server.tree.living()]
        if left:
            message = f"processes are left: {left}"
            raise AssertionError(message)

    def text(self, server: Server, name: str, place: int = 0) -> str:
        """Return what the model writes after one of its words."""
        words = self.words[name]
        body = {"model": name, "prompt": f"Once {words[place % len(words)]}", "raw": True}
        record = server.ask("/api/generate", {**body, "options": {"temperature": 0, "num_predict": TOKENS}})
        return str(record["response"])

    def expected(self, name: str, place: int = 0) -> str:
        """Return what it must write."""
        words = self.words[name]
        return "".join(f" {words[(place + number + 1) % len(words)]}" for number in range(TOKENS))

    def check_text(self, step: Step, server: Server, name: str) -> None:
        """Check the text of several requests at once."""
        with ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(lambda place: self.text(server, name, place), range(0, 80, 10)))
        right = sum(text == self.expected(name, place) for text, place in zip(texts, range(0, 80, 10), strict=True))
        step.check(right == len(texts), f"{name}: {right} of {len(texts)} texts are right")

    def speed(self, step: Step, server: Server, name: str) -> None:
        """Measure tokens per second at each number of clients with the project's own benchmark."""
        numbers = ",".join(map(str, self.clients))
        duration = "4" if self.on_cpu else "10"
        command = [sys.executable, "-m", "vllama", "bench", name, "--url", server.url, "--mode", "concurrent"]
        command += ["--concurrency", numbers, "--tokens", "128", "--prompt-tokens", "40"]
        command += ["--duration", duration, "--csv"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = list(csv.DictReader(done.stdout.splitlines())) if done.returncode == 0 else []
        step.check(len(rows) == len(self.clients), f"bench: {done.stderr.strip()[-300:]}")
        for number, row in zip(self.clients, rows, strict=False):
            step.figures[f"tok/s at {number}"] = round(float(row["output_tokens_per_second"]))

    def check_kill(self, step: Step, server: Server, name: str, victim: Callable[[], Process]) -> None:
        """Kill a process while eight clients are served: they get an error, and the next request is answered."""

        def ask(number: int) -> str:
            try:
                body = {"model": name, "prompt": f"{number}", "raw": True, "options": {"num_predict": 1500}}
                with server.stream("/api/generate", body) as records:
                    last = list(records)[-1]
                return "error" if "error" in last else "done" if last.get("done") else "cut off"
            except Exception as error:  # noqa: BLE001 - whatever a client sees
                return type(error).__name__

        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, number) for number in range(8)]
            time.sleep(1)  # so that all are served
            victim().kill()
            found = [answer.result(120) for answer in answers]
        step.figures["clients got"] = {word: found.count(word) for word in sorted(set(found))}
        step.check("cut off" not in found, f"a stream ended without a word: {found}")
        step.check(found.count("done") < len(found), "no client noticed")
        self.check_text(step, server, name)


def environ_of(process: Process) -> dict[str, str]:
    """Return the environment that a process was started with."""
    text = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def say(text: str) -> None:
    """Tell the progress."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


Run = Callable[[Bench, Step], None]


def run_steps(description: str, steps: Mapping[str, Run], arguments: Sequence[str] | None = None) -> int:
    """Run the steps that the command line names, print their table, and return the number of those that went wrong."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("steps", nargs="*", metavar="STEP", default=[])
    parser.add_argument("--work", type=Path, default=Path(Path(sys.argv[0]).name))
    parser.add_argument("--clients", default="1,32,256")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args(arguments)
    if unknown := set(options.steps) - steps.keys():
        parser.error(f"unknown steps: {', '.join(sorted(unknown))}")
    bench, done = Bench(options), []
    for name in options.steps or steps:
        say(name)
        step, began = Step(name), time.monotonic()
        try:
            steps[name](bench, step)
        except Exception as error:  # noqa: BLE001 - the other steps go on
            step.wrong.append(f"{type(error).__name__}: {error}")
        step.seconds = round(time.monotonic() - began, 1)
        done.append(step)
        print(f"{'right' if not step.wrong else 'WRONG':6} {name:10} {step.seconds:7.1f} s  {step.figures}", flush=True)
        for what in step.wrong:
            print(f"       {what[:600]}", flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(step) for step in done], indent=1), encoding="utf-8")
    return sum(bool(step.wrong) for step in done)
