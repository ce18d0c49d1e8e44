from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllama.machine.proc import Stat, is_ending, read_lines, read_numbers, stat_of, stats

TICK, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def write_stat(proc: Path, *, state: str = "S", threads: int = 1) -> None:
    (proc / "40").mkdir()
    numbers = " ".join(["0"] * 8 + ["150", "50", "0", "0", "0", "0", str(threads), "0", "999", "0", "3"])
    (proc / "40" / "stat").write_text(f"40 (a (strange) name) {state} 1 7 {numbers}")


def test_stat_is_read_whatever_the_process_is_called(tmp_path: Path) -> None:
    write_stat(tmp_path)
    stat = Stat(parent=1, group=7, cpu=200 / TICK, began=999, rss=3 * PAGE)
    assert stat_of(40, tmp_path) == stat
    (tmp_path / "self").mkdir()
    assert dict(stats(tmp_path)) == {40: stat}


@pytest.mark.parametrize(("state", "threads", "holds"), [("Z", 1, False), ("X", 0, False), ("Z", 2, True)])
def test_a_process_that_has_ended_holds_something_only_while_it_has_threads(
    tmp_path: Path, state: str, threads: int, holds: bool
) -> None:
    write_stat(tmp_path, state=state, threads=threads)
    assert (stat_of(40, tmp_path) is not None) is holds


def test_what_has_gone_says_nothing(tmp_path: Path) -> None:
    assert stat_of(40, tmp_path) is None
    assert read_lines(tmp_path / "meminfo") == []
    assert read_numbers(tmp_path / "meminfo") == {}


def test_of_each_line_the_first_number_is_read(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  64 kB\nAnon 7\nState:\tS (sleeping)\n\n")
    assert read_numbers(tmp_path / "meminfo") == {"MemTotal": 64, "Anon": 7}


def test_a_process_that_was_killed_is_ending_before_it_has_ended() -> None:
    command = [sys.executable, "-c", "held = bytearray(b'x') * 200_000_000; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert not is_ending(child.pid)
        child.kill()
        assert is_ending(child.pid)
    assert is_ending(child.pid)
