"""`scripts/serve` and `scripts/test`, with commands in .venv that only note how they are called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NOTE = """\
#!/usr/bin/env bash
echo "$(basename "$0") $*${OLLAMA_MODELS:+ in $OLLAMA_MODELS}" >>"$JOURNAL"
"""
# `python -m pytest`: exits with $QUICK or $ENGINE, by the marker in its arguments.
PYTEST = NOTE + 'case $* in *"not engine"*) exit "${QUICK:-0}" ;; *) exit "${ENGINE:-0}" ;; esac\n'


class Checkout:
    """A copy of the scripts whose tools write into a journal."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.journal = folder / "journal"
        (self.root / "scripts").mkdir(parents=True)
        (self.root / ".venv" / "bin").mkdir(parents=True)
        for script in ("serve", "test"):
            shutil.copy(ROOT / "scripts" / script, self.root / "scripts")
        for tool in ("scripts/install", "scripts/check", ".venv/bin/vllama"):
            self._write(tool, NOTE)
        self._write(".venv/bin/python", PYTEST)

    def _write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)
        (self.root / path).chmod(0o755)

    def run(self, script: str, *args: str, **environ: str) -> int:
        """Run a script from another folder and return its exit status."""
        self.journal.write_text("")
        inherited = {key: value for key, value in os.environ.items() if key != "OLLAMA_MODELS"}
        return subprocess.run(
            [self.root / "scripts" / script, *args],
            cwd="/",
            env={**inherited, "JOURNAL": str(self.journal), **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=30,
        ).returncode

    @property
    def calls(self) -> list[str]:
        """The calls of the last run, in order."""
        return self.journal.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_serve_installs_fetches_the_default_model_and_serves_it(checkout: Checkout) -> None:
    assert checkout.run("serve", "--max-model-len", "4096") == 0

    assert checkout.calls == [
        "install ",
        "vllama pull smollm2:135m",
        "vllama serve --model smollm2:135m --max-model-len 4096",
    ]


@pytest.mark.parametrize("flags", [("--model", "mine=/snapshot"), ("--model=mine=/snapshot",)])
def test_serve_fetches_nothing_where_a_model_is_named(checkout: Checkout, flags: tuple[str, ...]) -> None:
    checkout.run("serve", *flags)

    assert checkout.calls == ["install ", f"vllama serve {' '.join(flags)}"]


@pytest.mark.parametrize("flags", [("--models", "/a/store"), ("--models=/a/store",)])
def test_serve_fetches_the_model_into_the_store_that_is_served(checkout: Checkout, flags: tuple[str, ...]) -> None:
    checkout.run("serve", *flags)

    assert "vllama pull smollm2:135m in /a/store" in checkout.calls


def test_tests_are_checks_then_quick_tests_then_engine_tests(checkout: Checkout) -> None:
    assert checkout.run("test") == 0

    cached = f"in {checkout.root}/.cache/models"
    assert checkout.calls == [
        "install --dev",
        "check ",
        "python -m pytest -m not engine and not browser",
        f"install --clients {cached}",
        f"vllama pull smollm2:135m {cached}",
        f"python -m pytest -m engine or browser {cached}",
    ]


def test_quick_needs_no_model(checkout: Checkout) -> None:
    checkout.run("test", "quick", "-k", "names")

    assert checkout.calls == ["install --dev", "check ", "python -m pytest -m not engine and not browser -k names"]


def test_engine_takes_the_store_that_ollama_models_names(checkout: Checkout) -> None:
    checkout.run("test", "engine", OLLAMA_MODELS="/a/store")

    assert checkout.calls[1:] == [
        "install --clients in /a/store",
        "vllama pull smollm2:135m in /a/store",
        "python -m pytest -m engine or browser in /a/store",
    ]


def test_a_failed_quick_test_fails_the_run_but_the_engine_tests_still_run(checkout: Checkout) -> None:
    assert checkout.run("test", QUICK="1") == 1
    assert any("-m engine" in call for call in checkout.calls)


def test_a_failed_check_fails_the_run_but_the_tests_still_run(checkout: Checkout) -> None:
    (checkout.root / "scripts" / "check").write_text("#!/bin/sh\nexit 1\n")

    assert checkout.run("test", "quick") == 1
    assert any("not engine" in call for call in checkout.calls)


def test_a_stage_that_selects_no_test_is_no_failure_unless_none_does(checkout: Checkout) -> None:
    assert checkout.run("test", "-k", "names", ENGINE="5") == 0
    assert checkout.run("test", "-k", "nothing", QUICK="5", ENGINE="5") == 5
