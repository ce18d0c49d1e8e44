"""Runs of the tests in a copy of the tree, with and without faults."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mutations.table import ROOT, Fault, all_planted

QUICK = "not engine and not vllm and not browser"
_PARALLEL = {QUICK: ("-n", "2", "--dist", "worksteal")}
"""Other tests run one after another, in a process of their own as well: one that hangs is ended with its process."""
_SECONDS = {QUICK: 60.0}
"""How long a test may take; others as the settings of pytest say. With some faults, tests wait for ever."""
_NO_TESTS_RAN = 5
_FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+(?:\[.*?\])?)(?: - .*)?$", re.MULTILINE)
_LINKED = (".venv", ".venv-clients", ".cache", "tests/browser/node_modules", "tests/clients/node_modules")


@dataclass(slots=True)
class Result:
    """What happened to a fault. `by` is the test that caught it and `stage` its suite; both are "" if none did."""

    fault: Fault
    stage: str = ""
    by: str = ""
    seconds: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return {**asdict(self.fault), "stage": self.stage, "by": self.by, "seconds": round(self.seconds, 1)}


@dataclass(slots=True)
class Copy:
    """A clone of this repository, with its uncommitted changes, in which tests run."""

    root: Path
    seconds: Mapping[str, float] = field(default_factory=lambda: _SECONDS)
    """How long a test may take, by mark."""
    unreliable: set[str] = field(default_factory=set)
    """Tests that failed without a fault or did not fail again with it; they count for nothing."""

    @classmethod
    def make(cls, root: Path) -> Copy:
        """Clone the tree to `root`. Raises RuntimeError if tests there would import another vllama."""
        subprocess.run(["git", "clone", "--quiet", "--local", ROOT, root], check=True)
        changed = ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
        for path in subprocess.run(changed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0"):
            name = os.fsdecode(path)
            source, target = ROOT / name, root / name
            if name and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
                target.chmod(source.stat().st_mode)
            elif name and not source.is_dir():
                target.unlink(missing_ok=True)
        for name in _LINKED:
            if (ROOT / name).exists():
                (root / name).unlink(missing_ok=True)
                (root / name).symlink_to((ROOT / name).resolve())
        copy = cls(root)
        where = copy._run([sys.executable, "-c", "import vllama; print(vllama.__file__)"]).stdout.strip()
        if not Path(where).is_relative_to(root):
            raise RuntimeError(f"tests would import {where} instead of the copy in {root}")
        return copy

    def first_failure(self, faults: Iterable[Fault], paths: Sequence[str], marks: Sequence[str]) -> str:
        """Return a test that fails twice with these faults and passes without them; "" if there is none."""
        for mark in marks:
            while failed := self.failures(faults, paths, mark, "-x"):
                if caught := self._due_to(faults, failed, mark):
                    return caught[0]
        return ""

    def failures(self, faults: Iterable[Fault], paths: Sequence[str], mark: str, *arguments: str) -> list[str]:
        """Return the tests that fail with these faults, without the unreliable ones."""
        workers = _PARALLEL.get(mark, ("-n", "1"))
        # A signal does not end tests whose event loop waits for a task that no longer ends; a thread ends the process.
        limits = ["--timeout-method=thread", *(["--timeout", f"{self.seconds[mark]}"] if mark in self.seconds else [])]
        # The tests of the table fail with every fault, because they look for the text that it replaces.
        ignored = ["--ignore=tests/mutations", *(f"--deselect={test}" for test in self.unreliable)]
        command = [sys.executable, "-m", "pytest", "-q", "-m", mark, *workers, *limits, *ignored, *arguments, *paths]
        with all_planted(faults, self.root):
            ran = self._run(command)
        if ran.returncode in {0, _NO_TESTS_RAN}:
            return []
        failed = [test for test in dict.fromkeys(_FAILED.findall(ran.stdout)) if test not in self.unreliable]
        if not failed:
            raise RuntimeError(f"pytest ended with status {ran.returncode}:\n{ran.stdout[-4000:]}{ran.stderr[-4000:]}")
        return failed

    def _due_to(self, faults: Iterable[Fault], failed: Sequence[str], mark: str) -> list[str]:
        """Return those of the failed tests that the faults make fail, and remember the others as unreliable."""
        fail_anyway = set(self.failures((), failed, mark))
        rest = [test for test in failed if test not in fail_anyway]
        fail_again = set(self.failures(faults, rest, mark)) if rest else set()
        self.unreliable |= set(failed) - fail_again
        return [test for test in rest if test in fail_again]

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        environment.setdefault("OLLAMA_MODELS", str(ROOT / ".cache" / "models"))
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)


def run_own_tests(copy: Copy, fault: Fault) -> Result:
    """Plant the fault, and run the tests that its row names until one fails."""
    started = time.monotonic()
    by = copy.first_failure([fault], fault.tests, _marks(copy.root, fault.tests))
    return Result(fault, "own tests" if by else "", by, time.monotonic() - started)


def run_rest(copy: Copy, missed: Sequence[Result]) -> None:
    """Run the whole quick suite for the faults that their own tests missed, and record what catches them.

    The suite takes minutes, so all of them are planted together for it. A test that fails is run again with each
    fault alone, and without any.
    """
    faults = [result.fault for result in missed]
    for mark in (QUICK, "vllm"):
        failed = copy.failures(faults, (), mark)
        for result in missed if failed else ():
            if by := copy.first_failure([result.fault], failed, [mark]):
                result.stage, result.by = "quick suite", by


def run_engine_tests(copy: Copy, result: Result) -> None:
    """Run the engine module that the row of a missed fault names, and record what catches it."""
    started = time.monotonic()
    result.by = copy.first_failure([result.fault], [result.fault.engine], ["engine"])
    result.stage = "engine suite" if result.by else ""
    result.seconds += time.monotonic() - started


def _marks(root: Path, paths: Sequence[str]) -> list[str]:
    """Return the marks to run: tests that import vLLM take a process of their own, which starts slowly."""
    files = [
        file for path in paths for file in ((root / path).rglob("*.py") if (root / path).is_dir() else [root / path])
    ]
    has_vllm = any("pytest.mark.vllm" in file.read_text(encoding="utf-8") for file in files)
    return [QUICK, "vllm"] if has_vllm else [QUICK]
