"""What is true of every file that is shipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _shipped() -> list[Path]:
    """The files that are tracked, or would be if they were added."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


SHIPPED = _shipped()
BASH = [path for path in SHIPPED if path.read_bytes().startswith(b"#!/usr/bin/env bash\n")]


def test_the_scripts_that_the_readme_names_are_among_the_bash_scripts() -> None:
    assert {"install", "serve", "check", "test"} <= {path.name for path in BASH}
    assert ROOT / ".ci" / "run" in BASH


@pytest.mark.parametrize("script", BASH, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_bash_script_is_executable_strict_and_parses(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "\nset -euo pipefail\n" in script.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", BASH, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(script: Path) -> None:
    result = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    places = "|".join(re.escape(str(place)) for place in (ROOT, Path.home()))
    absolute = re.compile(rf"(?<![\w./-])(?:{places})/".encode())

    assert [path for path in SHIPPED if absolute.search(path.read_bytes())] == []
