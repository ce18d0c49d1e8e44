"""The official JSON Schema test suite, from the source package of jsonschema; fetched once into `.cache`."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

RELEASE = "jsonschema==4.26.0"
DRAFTS = ("draft7", "draft2020-12")
_CACHE = Path(__file__).parents[1] / ".cache" / "json-schema-suite"


class Group(NamedTuple):
    """One schema of the suite, and values with the verdict that is right."""

    name: str
    draft: str
    schema: dict[str, Any]
    tests: list[dict[str, Any]]


def groups() -> list[Group]:
    """Return all groups of the drafts whose schema is an object. Skips the test where the package cannot be had."""
    return list(_groups(_fetched()))


def _groups(suite: Path) -> Iterator[Group]:
    for draft in DRAFTS:
        for path in sorted((suite / draft).glob("*.json")):
            for group in json.loads(path.read_bytes()):
                if isinstance(group["schema"], dict):
                    name = f"{draft} {path.stem}: {group['description']}"
                    yield Group(name, draft, group["schema"], group["tests"])


def _fetched() -> Path:
    _CACHE.mkdir(parents=True, exist_ok=True)
    package = _CACHE / f"{RELEASE.replace('==', '-')}.tar.gz"
    if not package.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", RELEASE]
        if subprocess.run([*command, "--dest", str(_CACHE)], check=False, timeout=240).returncode != 0:
            pytest.skip(f"{RELEASE} cannot be downloaded")
    suite = _CACHE / package.name.removesuffix(".tar.gz") / "json" / "tests"
    if not suite.exists():
        with tarfile.open(package) as archive:
            archive.extractall(_CACHE, filter="data")
    return suite
