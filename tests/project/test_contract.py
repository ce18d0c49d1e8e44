"""Comments cite sections of docs/ollama-contract.md; the sections exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "docs" / "ollama-contract.md"
FOLDERS = ("vllama", "tests", "docs", "scripts")
SUFFIXES = {".py", ".md", ".toml", ".json", ".js", ".sh", ""}
KNOWN = 200
"""Fewer citations than this mean that the pattern below misses some, or the files."""

SECTION = r"§ ?\d+(?:\.\d+)*"
CITATION = re.compile(
    r"[Cc]ontract(?:'s)?(?: section| table| with clients)?,? ?\(?"
    rf"({SECTION}(?:(?:, | and |, and |[–-]){SECTION}|[–-]\d+(?:\.\d+)*)*)"
)


def cited(text: str) -> Iterator[str]:
    """Yield the numbers that a text cites, ranges with every section between."""
    for citation in CITATION.finditer(text):
        for first, last in re.findall(r"§ ?(\d+(?:\.\d+)*)(?:[–-]§? ?(\d+(?:\.\d+)*))?", citation[1]):
            yield first
            if last:
                chapter, _, start = first.rpartition(".")
                end = last.rpartition(".")[2]
                yield from (f"{chapter}.{n}".lstrip(".") for n in range(int(start) + 1, int(end) + 1))


def sections() -> set[str]:
    """Return the numbers of the headings."""
    page = CONTRACT.read_text(encoding="utf-8")
    return {number.rstrip(".") for number in re.findall(r"^#+ (\d[\d.]*) ", page, re.MULTILINE)}


def texts() -> Iterator[tuple[str, str]]:
    """Yield the files that may cite, by name, with their text."""
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))):
        if not path.is_file() or path.suffix not in SUFFIXES or path in {CONTRACT, Path(__file__)}:
            continue
        if "__pycache__" not in path.parts and "node_modules" not in path.parts:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8", errors="replace")


def citations() -> list[tuple[str, str]]:
    """Return each citation with its file."""
    return [(file, number) for file, text in texts() for number in cited(text)]


def test_every_cited_section_exists() -> None:
    known = sections()

    assert [(file, number) for file, number in citations() if number not in known] == []


def test_the_pattern_finds_the_citations_that_the_repository_has() -> None:
    assert len(citations()) >= KNOWN


def test_no_section_sign_on_a_line_about_the_contract_escapes_the_pattern() -> None:
    lines = [line for _, text in texts() for line in text.splitlines() if "ontract" in line and "§" in line]
    missed = [line for line in lines if sum(found[1].count("§") for found in CITATION.finditer(line)) < line.count("§")]

    assert missed == []


def test_the_page_cites_only_sections_that_it_has() -> None:
    page = CONTRACT.read_text(encoding="utf-8")

    assert set(re.findall(r"§(\d+(?:\.\d+)*)", page)) <= sections()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(contract §1.2)", ["1.2"]),
        ("contract §10", ["10"]),
        ("contract §1.7, §1.9", ["1.7", "1.9"]),
        ("contract §1.7–1.10", ["1.7", "1.8", "1.9", "1.10"]),
        ("contract §1.4 and §1.5 state", ["1.4", "1.5"]),
        ("the contract's table (§2.10)", ["2.10"]),
        ("the contract with clients (§6.4)", ["6.4"]),
        ("no section of a contract", []),
    ],
)
def test_a_citation_is_read_with_its_lists_and_ranges(text: str, numbers: list[str]) -> None:
    assert list(cited(text)) == numbers
