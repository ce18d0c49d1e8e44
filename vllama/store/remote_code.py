"""Code that a model's repository brings of its own: left out and never run, unless a user trusts it in this one model.

Its settings name its classes as `auto_map`: {"AutoConfig": "configuration_x.XConfig"}. transformers imports these from
the snapshot, in the worker, where vLLM is started with TRUST; that is one of the manifest's flags.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vllama.errors import ManifestCorrupt, SourceUnavailable
from vllama.store.manifest import Manifest

TRUST = "--trust-remote-code"
"""vLLM's flag, and that of `vllama pull` and `vllama load`."""

_SETTINGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def is_code(path: str) -> bool:
    """Whether the file is code that a worker can be told to run."""
    return PurePosixPath(path).suffix.lower() == ".py"


def is_trusted(flags: Sequence[str]) -> bool:
    """Whether a model with these flags may run its own code."""
    return TRUST in flags


def own_modules(snapshot: Path) -> list[str]:
    """Return the files with the classes that the settings name, sorted; "org/repo--x.py" lies in another repository.

    Raises ManifestCorrupt where the settings are damaged.
    """
    found = set()
    for path in (snapshot / name for name in _SETTINGS):
        if path.is_file():
            found |= {f"{name.rpartition('.')[0] or name}.py" for name in _class_names(path)}
    return sorted(found)


def advice(manifest: Manifest) -> str:
    """Return what to do where the model does not load for want of its own code; "" where it has none, or may run it."""
    if is_trusted(manifest.engine_flags) or not (code := own_modules(manifest.snapshot)):
        return ""
    command = f"vllama pull {TRUST} {manifest.asked or manifest.name.display}"
    if manifest.source.kind == "local":
        command += f" --from {manifest.source.locator}"
    return f"it brings {', '.join(code)}: if you trust where that comes from, {command}"


def check_can_run(repository: str, snapshot: Path, files: Iterable[str]) -> None:
    """Raise SourceUnavailable where there is no code to trust among the files, or some of it is not there."""
    needed, here = own_modules(snapshot), set(files)
    if not needed:
        raise SourceUnavailable(f"{repository} names no code of its own (auto_map): leave out {TRUST}")
    if lacking := sorted(path for path in needed if path not in here):
        raise SourceUnavailable(
            f"the code of {repository} cannot be taken along: {', '.join(lacking)} is not in it"
            + (" ('org/repo--' is another repository)" if any("--" in path for path in lacking) else "")
        )


def _class_names(path: Path) -> Iterator[str]:
    try:
        named = json.loads(path.read_bytes()).get("auto_map")
    except (ValueError, AttributeError) as error:
        raise ManifestCorrupt(f"{path.name} is no JSON object: {error}") from error
    for value in named.values() if isinstance(named, dict) else ():
        yield from (name for name in _flat(value) if name)


def _flat(value: Any) -> Iterator[str]:
    """A tokenizer has two classes, one of which may be null."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item
