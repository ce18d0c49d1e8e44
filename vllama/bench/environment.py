"""The manifest of a result: the facts about machine, programs and servers that are needed to repeat it.

    {"hardware": {"cpu", "cores", "memory_bytes", "gpus": [{"index", "name", "memory_bytes", "power_limit_w"}]},
     "versions": {"vllama", "python", "kernel", "driver", "cuda"},
     "commit": {"revision", "changed"},                       where vllama runs from a checkout
     "servers": {NAME: {"url", "local", "answers": {PATH: reply}, "commands": [[…]], "variables": {…}}}}

What cannot be known is missing. Of commands and variables, what is secret reads `***`.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

import vllama
from vllama.bench.gpus import Gpus
from vllama.bench.result import System
from vllama.keys.credentials import credentials
from vllama.machine.host import cores, processor
from vllama.machine.processes import ProcessTree, command_lines, is_local, listener, variables

_TIMEOUT = 5.0
_VARIABLES = ("OLLAMA_", "VLLM_", "VLLAMA_", "CUDA_VISIBLE", "OMP_", "LD_PRELOAD", "HF_HUB_OFFLINE")
"""Of a server's environment, what changes how fast it is."""

_VOLATILE = frozenset({"modified_at", "expires_at", "created", "license", "modelfile", "tensors", "model_info"})
"""Of a server's replies, what says nothing about speed or is long."""


def manifest(systems: Sequence[System], gpus: Gpus | None = None) -> dict[str, Any]:
    """Return the environment of a bench with these systems; asks each server, which takes ms."""
    gpus = Gpus() if gpus is None else gpus
    versions = {
        "vllama": vllama.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "driver": gpus.driver,
        "cuda": gpus.cuda,
    }
    found: dict[str, Any] = {
        "hardware": hardware(gpus),
        "versions": {name: version for name, version in versions.items() if version},
        "servers": {system.name: _server(system) for system in systems},
    }
    if revision := commit(Path(vllama.__file__).parent):
        found["commit"] = revision
    return found


def hardware(gpus: Gpus) -> dict[str, Any]:
    """Return what this machine is. `cores` are those that this process may use."""
    return {
        "cpu": processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpus": [
            {"index": gpu.index, "name": gpu.name, "memory_bytes": gpu.memory, "power_limit_w": gpu.power_limit}
            for gpu in gpus.describe()
        ],
    }


def commit(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout that holds this folder, and whether files that it tracks were changed."""
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        # A virtual environment inside somebody's checkout is no checkout of ours.
        if not _git(folder, "ls-files", "--", "__init__.py"):
            return None
        return {"revision": revision, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what differs between two environments, by dotted name; "" stands for what is missing."""
    first, second = dict(_flat(one)), dict(_flat(other))
    names = [*first, *(name for name in second if name not in first)]
    return {name: (first.get(name, ""), second.get(name, "")) for name in names if first.get(name) != second.get(name)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT).stdout.strip()


def _server(system: System) -> dict[str, Any]:
    parts = urlsplit(system.url)
    found: dict[str, Any] = {"url": system.url, "local": is_local(parts.hostname or ""), "answers": _answers(system)}
    root = listener(parts.port or 80) if found["local"] else None
    if root is not None:
        found["commands"] = command_lines(ProcessTree(root).pids)
        found["variables"] = variables(root, _VARIABLES)
    return found


def _answers(system: System) -> dict[str, Any]:
    """Return the server's replies about itself and its model, without the routes that it lacks."""
    answers: dict[str, Any] = {}
    parts = urlsplit(system.url)
    with httpx.Client(
        headers=credentials(), base_url=f"{parts.scheme}://{parts.netloc}", timeout=_TIMEOUT, trust_env=False
    ) as client:
        for method, path, body in (
            ("GET", "/api/version", None),
            ("GET", "/version", None),
            ("POST", "/api/show", {"model": system.model}),
            ("GET", "/api/tags", None),
            ("GET", "/v1/models", None),
        ):
            try:
                reply = client.request(method, path, json=body).raise_for_status().json()
            except (httpx.HTTPError, ValueError):
                continue
            answers[path] = _of_model(reply, system.model)
    return answers


def _of_model(reply: Any, model: str) -> Any:
    """Return a reply without what is volatile; of a list of models, the one in question."""
    if not isinstance(reply, dict):
        return reply
    for key in ("models", "data"):
        if isinstance(reply.get(key), list):
            mine = [entry for entry in reply[key] if isinstance(entry, dict) and _is(entry, model)]
            return _steady(mine[0]) if mine else {}
    return _steady(reply)


def _is(entry: Mapping[str, Any], model: str) -> bool:
    return not {model, f"{model}:latest"}.isdisjoint({entry.get("name"), entry.get("id")})


def _steady(reply: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key not in _VOLATILE}


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return [pair for i, item in enumerate(value) for pair in _flat(item, f"{name}[{i}]")]
    if isinstance(value, list | tuple):
        return [(name, " ".join(map(str, value)))]
    return [(name, str(value))]
