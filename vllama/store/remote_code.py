"""A model's own code: skipped and never run, unless a user trusts it for this model.

The settings name the classes in `auto_map`: {"AutoConfig": "configuration_x.XConfig"}. transformers imports these from
the snapshot, in the worker, where vLLM is started with TRUST; that is one of the manifest's flags.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vllama.errors import ManifestCorrupt, SourceUnavailable
from vllama.store.foreign_files import read_json
from vllama.store.manifest import Manifest

TRUST = "--trust-remote-code"
"""Flag of vLLM, and of `vllama pull` and `vllama load`."""

_SETTINGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def is_code(path: str) -> bool:
    """Return whether the file is code that a worker may be allowed to run."""
    return PurePosixPath(path).suffix.lower() == ".py"


def is_trusted(flags: Sequence[str]) -> bool:
    """Return whether a model with these flags may run its own code."""
    return TRUST in flags


def own_modules(snapshot: Path) -> list[str]:
    """Return the sorted files of the classes in the settings; "org/repo--x.py" is in another repository.

    Raises ManifestCorrupt if the settings are damaged.
    """
    found = set()
    for path in (snapshot / name for name in _SETTINGS):
        if path.is_file():
            found |= {f"{name.rpartition('.')[0] or name}.py" for name in _class_names(path)}
    return sorted(found)


def advice(manifest: Manifest) -> str:
    """Return advice for a model that may fail to load without its own code; "" if it has none or may run it."""
    if is_trusted(manifest.engine_flags) or not (code := own_modules(manifest.snapshot)):
        return ""
    command = f"vllama pull {TRUST} {manifest.asked or manifest.name.display}"
    if manifest.source.kind == "local":
        command += f" --from {manifest.source.locator}"
    return f"the model has its own code ({', '.join(code)}); if you trust its source, run {command}"


def check_can_run(repository: str, snapshot: Path, files: Iterable[str]) -> None:
    """Raise SourceUnavailable if the model has no code to trust, or some of it is missing in the files."""
    needed, here = own_modules(snapshot), set(files)
    if not needed:
        raise SourceUnavailable(f"{repository} has no code of its own (auto_map); omit {TRUST}")
    if lacking := sorted(path for path in needed if path not in here):
        raise SourceUnavailable(
            f"cannot pull the code of {repository}: {', '.join(lacking)} is missing in it"
            + (" ('org/repo--' is another repository)" if any("--" in path for path in lacking) else "")
        )


def _class_names(path: Path) -> Iterator[str]:
    try:
        named = read_json(path).get("auto_map")
    except OSError as error:
        raise ManifestCorrupt(f"cannot read {path}: {error}") from error
    except (ValueError, AttributeError) as error:
        raise ManifestCorrupt(f"{path.name} is not a JSON object: {error}") from error
    for value in named.values() if isinstance(named, dict) else ():
        yield from (name for name in _flat(value) if name)


def _flat(value: Any) -> Iterator[str]:
    """Yield the class names of a value: a tokenizer has two, one of which may be null."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item
