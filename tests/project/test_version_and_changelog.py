"""The version is written in three places; they agree."""

from __future__ import annotations

import re
from pathlib import Path

from vllama import __version__

ROOT = Path(__file__).parents[2]


def test_the_version_is_that_of_the_newest_entry_of_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    newest = re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)

    assert newest is not None
    assert newest[1] == __version__


def test_the_version_is_the_one_to_cite() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")

    assert f"version: {__version__}\n" in citation
