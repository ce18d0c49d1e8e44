"""scripts/prose.py finds what its rules name, and leaves plain sentences alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _found(*arguments: str | Path) -> list[str]:
    """Return the rules that a run of the checker reports."""
    command = [sys.executable, ROOT / "scripts" / "prose.py", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.returncode == (1 if result.stdout else 0)
    return [line.split(": ")[1] for line in result.stdout.splitlines()]


BAD = {
    "This surely frees the memory.": "surely",
    "It is none of its models.": "none-of",
    "Who is signed in may ask more often.": "headless-who",
    "The list is not whole.": "not-whole",
    "Whoever asks gets it.": "old-words",
    "Nobody is asked.": "nobody",
    "Report a weakness here.": "security-weakness",
    "It has not the rank that its manifest says.": "has-not",
    "What is loaded is never removed.": "headless-what-subject",
}


def test_each_forbidden_form_is_found_in_markdown(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n\n".join(BAD), encoding="utf-8")

    assert set(BAD.values()) <= set(_found(page))


def test_code_in_markdown_is_not_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Run `surely`.\n\n```\nsurely\n```\n[a page](surely.md)\n", encoding="utf-8")

    assert _found(page) == []


def test_a_docstring_needs_more_than_two_words(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""Begin."""\n\nX = 1\n"""Another one."""\n\n\ndef f():\n    """Count the bytes of a frame."""\n',
        encoding="utf-8",
    )

    assert _found(module) == ["fragment", "fragment"]


@pytest.mark.parametrize(
    ("title", "rules"),
    [
        ("Remove worker sockets after the last thread exits", []),
        ("Process requests in order", []),
        ("Merge branch 'words'", []),
        ("Remove worker sockets after the last thread exits.", ["title-period"]),
        ("A worker is gone", ["title-imperative"]),
        ("Results: a hundred faults", ["title-imperative"]),
        ("Removed the sockets", ["title-imperative"]),
        ("Removes the sockets", ["title-imperative"]),
        (f"Remove {'x' * 66}", ["title-length"]),
    ],
)
def test_a_commit_title_is_short_and_imperative(tmp_path: Path, title: str, rules: list[str]) -> None:
    message = tmp_path / "message"
    message.write_text(f"{title}\n\nBecause.\n", encoding="utf-8")

    assert _found("--commit-message", message) == rules


def test_a_history_without_the_base_commit_has_no_titles_to_check() -> None:
    command = "import prose; print(prose.commits('0' * 40))"
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )

    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_the_whole_check_reads_pages_docstrings_and_help() -> None:
    command = "import prose; print(len(list(prose.help_texts())), len(prose.everything()))"
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )
    helps, files = map(int, result.stdout.split())

    assert helps > 100
    assert files > 150
