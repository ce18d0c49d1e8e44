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
# `python -m pytest`: prints which tests it is asked for, and exits with $QUICK, $VLLM or $ENGINE.
PYTEST = f"""\
{NOTE}
case $* in
  *taught_model*) exit ;;
  *"not engine"*) name=quick status=${{QUICK:-0}} ;;
  *"-m vllm"*) name=vllm status=${{VLLM:-0}} ;;
  *) name=engine status=${{ENGINE:-0}} ;;
esac
echo "first line of $name"
echo "last line of $name, in full: ${{VLLAMA_TEST_FULL:-0}}"
exit "$status"
"""
QUICK = "python -m pytest --durations=20 -n 2 --dist worksteal -m not engine and not vllm and not browser"
ENGINE = "python -m pytest --durations=20 -n 2 --dist loadscope --no-loadscope-reorder -m engine or browser"


class Checkout:
    """A copy of the scripts whose tools write into a journal."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.journal = folder / "journal"
        self.output: list[str] = []
        self.errors: list[str] = []
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
        inherited = {
            key: value for key, value in os.environ.items() if key not in {"OLLAMA_MODELS", "VLLAMA_TEST_FULL"}
        }
        done = subprocess.run(
            [self.root / "scripts" / script, *args],
            cwd="/",
            env={**inherited, "JOURNAL": str(self.journal), **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        self.output = done.stdout.splitlines()
        self.errors = done.stderr.splitlines()
        return done.returncode

    @property
    def calls(self) -> list[str]:
        """The calls of the last run, in order, without the tests that run beside the others."""
        return [call for call in self.journal.read_text().splitlines() if not self._is_beside(call)]

    @property
    def calls_beside(self) -> list[str]:
        """The calls of the last run that run at the same time as the others."""
        return [call for call in self.journal.read_text().splitlines() if self._is_beside(call)]

    @staticmethod
    def _is_beside(call: str) -> bool:
        return "-m vllm" in call or "clients" in call


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
    prepared = [f"vllama pull smollm2:135m {cached}", f"python tests/taught_model.py {cached}"]
    prepared += [f"vllama pull all-minilm {cached}"]
    first, *between, last = checkout.calls
    assert (first, last) == ("install --dev", f"{ENGINE} {cached}")
    assert [call for call in between if call in prepared] == prepared
    assert [call for call in between if call not in prepared] == ["check ", QUICK]
    assert sorted(checkout.calls_beside) == ["install --only-clients", "python -m pytest -m vllm"]


def test_a_model_that_cannot_be_had_fails_the_run(checkout: Checkout) -> None:
    (checkout.root / ".venv" / "bin" / "vllama").write_text("#!/bin/sh\nexit 1\n")

    assert checkout.run("test") == 1
    assert "test: failed: preparation of the engine tests" in checkout.errors


def test_quick_needs_no_model(checkout: Checkout) -> None:
    checkout.run("test", "quick", "-k", "names")

    assert checkout.calls == ["install --dev", "check ", f"{QUICK} -k names"]
    assert checkout.calls_beside == ["python -m pytest -m vllm -k names"]


def test_outputs_of_tests_that_run_at_the_same_time_are_not_mixed(checkout: Checkout) -> None:
    checkout.run("test")

    assert checkout.output == [
        "test: quick tests",
        "first line of quick",
        "last line of quick, in full: 0",
        "test: tests that import vLLM",
        "first line of vllm",
        "last line of vllm, in full: 0",
        "test: engine tests",
        "first line of engine",
        "last line of engine, in full: 0",
    ]


@pytest.mark.parametrize("stage", [(), ("all",), ("quick",), ("engine",)])
def test_slow_runs_long_tests_in_full(checkout: Checkout, stage: tuple[str, ...]) -> None:
    assert checkout.run("test", *stage, "--slow", "-k", "names") == 0

    assert all(line.endswith("in full: 1") for line in checkout.output if line.startswith("last line"))
    assert all("-k names" in call for call in (*checkout.calls, *checkout.calls_beside) if "-m pytest" in call)


def test_engine_takes_the_store_that_ollama_models_names(checkout: Checkout) -> None:
    checkout.run("test", "engine", OLLAMA_MODELS="/a/store")

    assert checkout.calls[1:] == [
        "vllama pull smollm2:135m in /a/store",
        "python tests/taught_model.py in /a/store",
        "vllama pull all-minilm in /a/store",
        f"{ENGINE} in /a/store",
    ]


def test_a_failed_quick_test_fails_the_run_but_the_engine_tests_still_run(checkout: Checkout) -> None:
    assert checkout.run("test", QUICK="1") == 1
    assert any("-m engine" in call for call in checkout.calls)


def test_a_failed_test_that_imports_vllm_fails_the_run_but_the_engine_tests_still_run(checkout: Checkout) -> None:
    assert checkout.run("test", VLLM="1") == 1
    assert any("-m engine" in call for call in checkout.calls)


def test_a_failed_check_fails_the_run_but_the_tests_still_run(checkout: Checkout) -> None:
    (checkout.root / "scripts" / "check").write_text("#!/bin/sh\nexit 1\n")

    assert checkout.run("test", "quick") == 1
    assert any("not engine" in call for call in checkout.calls)


def test_a_stage_that_selects_no_test_is_no_failure_unless_none_does(checkout: Checkout) -> None:
    assert checkout.run("test", "-k", "names", VLLM="5", ENGINE="5") == 0
    assert checkout.run("test", "-k", "nothing", QUICK="5", VLLM="5", ENGINE="5") == 5
