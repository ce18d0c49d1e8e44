"""Each fault of the table can be planted in the code as it is now, and tests that fail because of it are found."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mutations.runs import Copy
from mutations.table import ROOT, DoesNotApply, Fault, all_planted, read_table

FAULTS = read_table()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_still_applies_to_its_file_and_names_tests_that_exist(fault: Fault) -> None:
    ast.parse(fault.applied_to(ROOT))

    assert [path for path in (*fault.tests, fault.engine) if not (ROOT / path).exists()] == []
    assert fault.means


def test_there_are_30_faults_in_five_packages() -> None:
    assert len(FAULTS) == 30
    assert {fault.file.split("/")[1] for fault in FAULTS} == {"gateway", "scheduler", "store", "ollama", "worker"}


def _fault(text: str) -> Fault:
    return Fault("swapped", "code.py", text, "b if c else a", "", (), "")


def test_a_planted_fault_is_removed_again(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("x = a if c else b\n")

    with all_planted([_fault("a if c else b")], tmp_path):
        assert (tmp_path / "code.py").read_text() == "x = b if c else a\n"

    assert (tmp_path / "code.py").read_text() == "x = a if c else b\n"


@pytest.mark.parametrize(("content", "times"), [("x = 1\n", 0), ("a if c else b\na if c else b\n", 2)])
def test_a_fault_whose_text_does_not_stand_once_is_refused_with_its_name(
    tmp_path: Path, content: str, times: int
) -> None:
    (tmp_path / "code.py").write_text(content)

    with pytest.raises(DoesNotApply, match=f"swapped: its text stands {times} times in code.py, not once"):
        _fault("a if c else b").applied_to(tmp_path)


TESTS = """
from code_under_test import least

def test_that_always_fails():
    assert least(0, 1) == 7

def test_least():
    assert least(2, 1) == 1
"""


def test_only_a_test_that_passes_without_the_fault_catches_it(tmp_path: Path) -> None:
    (tmp_path / "code_under_test.py").write_text("def least(a, b):\n    return a if a < b else b\n")
    (tmp_path / "test_least.py").write_text(TESTS)
    copy = Copy(tmp_path)
    planted = Fault("swapped", "code_under_test.py", "a < b", "a > b", "", (), "")

    assert copy.first_failure([planted], ["test_least.py"], [""]) == "test_least.py::test_least"

    assert copy.unreliable == {"test_least.py::test_that_always_fails"}


HANGING_TEST = """
import threading
from code_under_test import ended

def test_that_waits_for_its_end():
    while not ended.wait(0.1):
        pass
"""


@pytest.mark.slow  # it waits twice for the end of the time
def test_a_test_that_hangs_with_a_fault_catches_it(tmp_path: Path) -> None:
    (tmp_path / "code_under_test.py").write_text("import threading\nended = threading.Event()\nended.set()\n")
    (tmp_path / "test_end.py").write_text(HANGING_TEST)
    copy = Copy(tmp_path)
    planted = Fault("never ends", "code_under_test.py", "ended.set()", "ended.clear()", "", (), "")

    assert copy.first_failure([planted], ["test_end.py"], [""], seconds=30) == "test_end.py"
