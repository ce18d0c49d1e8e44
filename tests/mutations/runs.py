"""Runs of the tests in a copy of the tree, with and without faults."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mutations.table import ROOT, Fault, all_planted

QUICK = "not engine and not vllm and not browser"
_PARALLEL = ("-n", "2", "--dist", "worksteal")
_FEW, _SUITE = 150.0, 3600.0
"""Seconds for a run of the tests that a row names, and of a whole suite. With some faults, tests wait for ever."""
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

    def first_failure(
        self, faults: Iterable[Fault], paths: Sequence[str], marks: Sequence[str], seconds: float = _FEW
    ) -> str:
        """Return a test that fails twice with these faults and passes without them; "" if there is none.

        If a run with the faults takes longer than `seconds`, the first of the paths is returned instead of a test.
        """
        for mark in marks:
            while failed := self.failures(faults, paths, mark, "-x", seconds=seconds):
                if caught := self._due_to(faults, failed, seconds):
                    return caught[0]
        return ""

    def failures(
        self, faults: Iterable[Fault], paths: Sequence[str], mark: str, *arguments: str, seconds: float = _FEW
    ) -> list[str]:
        """Return the tests that fail with these faults, without the unreliable ones; the paths if the run hangs."""
        parallel = _PARALLEL if mark == QUICK else ()
        # The tests of the table fail with every fault, because they look for the text that it replaces.
        ignored = ["--ignore=tests/mutations", *(f"--deselect={test}" for test in self.unreliable)]
        command = [sys.executable, "-m", "pytest", "-q", "-m", mark, *parallel, *ignored, *arguments, *paths]
        with all_planted(faults, self.root):
            try:
                ran = self._run(command, seconds)
            except subprocess.TimeoutExpired:
                if not paths:
                    raise RuntimeError(f"a whole suite did not end within {seconds:.0f} s") from None
                return [path for path in paths if path not in self.unreliable]
        if ran.returncode in {0, _NO_TESTS_RAN}:
            return []
        failed = [test for test in dict.fromkeys(_FAILED.findall(ran.stdout)) if test not in self.unreliable]
        if not failed:
            raise RuntimeError(f"pytest ended with status {ran.returncode}:\n{ran.stdout[-4000:]}{ran.stderr[-4000:]}")
        return failed

    def _due_to(self, faults: Iterable[Fault], failed: Sequence[str], seconds: float) -> list[str]:
        """Return those of the failed tests that the faults make fail, and remember the others as unreliable."""
        fail_anyway = set(self.failures((), failed, "", seconds=seconds))
        rest = [test for test in failed if test not in fail_anyway]
        fail_again = set(self.failures(faults, rest, "", seconds=seconds)) if rest else set()
        self.unreliable |= set(failed) - fail_again
        return [test for test in rest if test in fail_again]

    def _run(self, command: Sequence[str], seconds: float = _FEW) -> subprocess.CompletedProcess[str]:
        """Run a command. After `seconds`, kill it with its children and raise `subprocess.TimeoutExpired`."""
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        environment.setdefault("OLLAMA_MODELS", str(ROOT / ".cache" / "models"))
        with subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output, errors = process.communicate(timeout=seconds)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, output, errors)


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
        failed = copy.failures(faults, (), mark, seconds=_SUITE)
        for result in missed if failed else ():
            if by := copy.first_failure([result.fault], failed, [mark]):
                result.stage, result.by = "quick suite", by


def run_engine_tests(copy: Copy, result: Result) -> None:
    """Run the engine module that the row of a missed fault names, and record what catches it."""
    started = time.monotonic()
    result.by = copy.first_failure([result.fault], [result.fault.engine], ["engine"], _SUITE)
    result.stage = "engine suite" if result.by else ""
    result.seconds += time.monotonic() - started


def _marks(root: Path, paths: Sequence[str]) -> list[str]:
    """Return the marks to run: tests that import vLLM take a process of their own, which starts slowly."""
    files = [
        file for path in paths for file in ((root / path).rglob("*.py") if (root / path).is_dir() else [root / path])
    ]
    has_vllm = any("pytest.mark.vllm" in file.read_text(encoding="utf-8") for file in files)
    return [QUICK, "vllm"] if has_vllm else [QUICK]
