"""The documents say what the code does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllama.ollama import options
from vllama.settings import SETTINGS, Setting

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])


def test_the_generated_tables_are_what_their_sources_say() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs.py", "--check"], capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.name)
def test_every_setting_is_documented(row: Setting) -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")

    assert f"| `{row.env}` |" in page


@pytest.mark.parametrize("option", options.TYPES)
def test_every_option_is_documented(option: str) -> None:
    assert f"`{option}`" in _table_of_options()


@pytest.mark.parametrize("option", options.DEFAULTS)
def test_every_default_of_an_option_is_documented(option: str) -> None:
    row = re.search(rf"^\| `{option}` \| (.*?) \|", _table_of_options(), re.MULTILINE)
    words = {"num_ctx": "served context", "stop": "none"}

    assert row is not None
    assert row[1].replace("−", "-") == words.get(option, str(options.DEFAULTS[option]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page

        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


def _table_of_options() -> str:
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    return page.partition("## Options")[2].partition("\n## ")[0]


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_page_of_clients_names_the_versions_that_are_tested() -> None:
    page = (DOCS / "clients.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([\w-]+)`[^|]*\| ([\d.]+) \|", page, re.MULTILINE))
    folder = ROOT / "tests" / "clients"
    pinned = set()
    for package in (folder / "package.json", folder / "agents" / "package.json"):
        wanted = json.loads(package.read_text(encoding="utf-8"))["dependencies"]
        pinned |= {(name.rpartition("/")[2], version) for name, version in wanted.items()}
    for requirements in (folder / "requirements").glob("*.txt"):
        clients, _, _ = requirements.read_text(encoding="utf-8").partition("\n\n")
        pinned |= set(re.findall(r"^([\w-]+)(?:\[\w+\])?==([\d.]+)$", clients, re.MULTILINE))

    assert documented == pinned
