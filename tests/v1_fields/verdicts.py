"""Fields of `/v1` that Ollama accepts and vLLM refuses, and what becomes of them here.

`fields.toml` says what Ollama accepts; the installed vLLM and our conversion are asked. `verdicts.json` is what
`docs/compatibility.md` shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllama.errors import RequestError
from vllama.ollama.openai.call import Call
from vllama.ollama.openai.chat import ChatCompletion
from vllama.ollama.openai.completions import Completion
from vllama.ollama.openai.messages import AnthropicMessage
from vllama.ollama.openai.responses import Response
from vllama.scheduler.engine_flags import environment

FOLDER = Path(__file__).parent
COMMITTED = FOLDER / "verdicts.json"

_CALLS: Mapping[str, type[Call]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/responses": Response,
    "/v1/messages": AnthropicMessage,
}
_VALUES: Mapping[str, list[Any]] = {
    "number": [0, -1, 0.5, 1.5, 99],
    "integer": [0, -1, 7, 1_000_000],
    "boolean": [True, False],
    "string": ["", "x", "auto"],
    "ignored": [True, 0, -1, 0.5, "x", [], ["x"], {}, {"x": 1}],
    "as shown": [],
}
_LONGEST = 60

Verdict = dict[str, Any]
"""`ollama`: how Ollama reads it; `vllm`: the type that vLLM requires; `here`: what becomes of the values that Ollama
accepts and vLLM refuses; `refused`: the values, of all that were tried, that are refused here."""


@dataclass(frozen=True, slots=True)
class Part:
    """A model that can do everything."""

    full_name: str = "registry.ollama.ai/library/m:latest"
    capabilities: tuple[str, ...] = ("completion", "tools", "thinking", "vision", "insert")
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a field that Ollama accepts, in a body that is right apart from it."""

    path: str
    name: str
    value: Any
    body: dict[str, Any]

    @property
    def shown(self) -> str:
        """The value as JSON, shortened."""
        text = json.dumps(self.value, ensure_ascii=False)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"

    def converted(self) -> dict[str, Any] | str:
        """Return the body for vLLM, or why it is refused."""
        try:
            call = _CALLS[self.path].parse(json.dumps(self.body).encode())  # type: ignore[attr-defined]
            body: dict[str, Any] = call.for_vllm(Part())
        except RequestError as error:
            return str(error)
        return body


def described() -> dict[str, Any]:
    """Return fields.toml."""
    return tomllib.loads((FOLDER / "fields.toml").read_text(encoding="utf-8"))


def samples() -> Iterator[Sample]:
    """Yield all values to try."""
    for path, route in described().items():
        for name, kind in route["fields"].items():
            further = [json.loads(text) for text in route.get("samples", {}).get(name, ())]
            beside = json.loads(route.get("beside", {}).get(name, "{}"))
            for value in [*_VALUES[kind], *further, None] if (name, kind) not in _REQUIRED else further:
                yield Sample(path, name, value, {**json.loads(route["base"]), **beside, name: value})


_REQUIRED = {(name, "as shown") for name in ("messages", "prompt", "input", "max_tokens")}
"""Fields of which null is no value."""


def measured() -> dict[str, Any]:
    """Return the verdicts of the installed vLLM and of this tree, by path and field, and vLLM's own fields."""
    tried = list(samples())
    theirs = _asked([(sample.path, sample.body) for sample in tried], os.environ)
    converted, refusals = _tried_here(tried)
    verdicts: dict[str, Any] = {}
    for path, route in described().items():
        types = theirs["types"][path]
        own = [name for name in types if name not in route["fields"] and name != "model"]
        fields: dict[str, Verdict] = {
            name: {"ollama": kind, "vllm": types.get(name, "ignored"), "here": {}, "refused": []}
            for name, kind in route["fields"].items()
        }
        verdicts[path] = {"fields": fields, "vllm_only": own}
    outcomes = zip(tried, converted, theirs["refused"], refusals, strict=True)
    for sample, body, they_refuse, is_refused in outcomes:
        verdict: Verdict = verdicts[sample.path]["fields"][sample.name]
        if they_refuse:
            outcome = "refused" if is_refused else _outcome(sample, body)
            verdict["here"].setdefault(outcome, []).append(sample.shown)
        if is_refused:
            verdict["refused"].append(sample.shown)
    return verdicts


def refused_here() -> dict[str, dict[str, list[str]]]:
    """Return the values that are refused here, by path and field."""
    tried = list(samples())
    found: dict[str, dict[str, list[str]]] = {path: {} for path in described()}
    for sample, is_refused in zip(tried, _tried_here(tried)[1], strict=True):
        if is_refused:
            found[sample.path].setdefault(sample.name, []).append(sample.shown)
    return found


def _tried_here(tried: list[Sample]) -> tuple[list[dict[str, Any] | str], list[bool]]:
    """Return each body as vLLM gets it, or the reason for our refusal, and whether we or vLLM refuse it."""
    converted = [sample.converted() for sample in tried]
    bodies = [
        (sample.path, body if isinstance(body, dict) else {}) for sample, body in zip(tried, converted, strict=True)
    ]
    reasons = _asked(bodies, environment(os.environ, FOLDER, on_cpu=True))["refused"]
    refusals = [isinstance(body, str) or reason is not None for body, reason in zip(converted, reasons, strict=True)]
    return converted, refusals


def _outcome(sample: Sample, body: Any) -> str:
    """Return what vLLM gets instead of a value that it would refuse."""
    if sample.name not in body:
        return "left out"
    value = body[sample.name]
    if isinstance(value, int | float):
        return json.dumps(value)
    return "rewritten" if value != sample.value else "accepted"


def _asked(bodies: list[tuple[str, Any]], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return what vLLM says to the bodies, in a process with these variables."""
    command = [sys.executable, "-m", "v1_fields.vllm_verdicts"]
    path = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    result = subprocess.run(
        command,
        input=json.dumps(bodies),
        capture_output=True,
        text=True,
        check=False,
        env={**variables, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    verdicts: dict[str, Any] = json.loads(result.stdout)
    return verdicts
