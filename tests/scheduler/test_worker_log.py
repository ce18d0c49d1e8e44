"""What is read out of a worker's log."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllama.scheduler.worker_log import WorkerLog, open_log

GIB = 1024**3


def test_the_cause_is_found_at_the_end_of_a_log_however_long_it_is(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    path.write_text("line\n" * 1_000_000 + "torch.OutOfMemoryError: CUDA out of memory\n")
    log = WorkerLog(path)
    assert log.diagnose(1).key == "gpu-memory-unknown"
    assert log.tail().endswith("CUDA out of memory")


def test_a_line_without_an_end_costs_no_time(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    path.write_text("A" * 10_000_000 + "\ntorch.OutOfMemoryError: CUDA out of memory\n")
    began = time.process_time()
    assert WorkerLog(path).diagnose(1).key == "gpu-memory-unknown"
    assert time.process_time() - began < 5


def test_a_log_on_a_device_that_has_no_end_is_not_read_for_ever() -> None:
    program = f"""
import pathlib, resource
import pytest

from vllama.scheduler.worker_log import WorkerLog, open_log
resource.setrlimit(resource.RLIMIT_AS, ({2 * GIB}, {2 * GIB}))
log = WorkerLog(pathlib.Path("/dev/full"))
print(log.diagnose(1).cause, log.load_progress().phase)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("vLLM exited without an error message (exit status 1)"), done.stderr[-500:]


def test_the_logs_of_earlier_loads_are_kept_up_to_a_number(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "m.log"
    for load in range(5):
        with open_log(path, 2) as output:
            output.write(b"%d" % load)
    assert contents(path.parent) == {"m.log": "4", "m.1.log": "3", "m.2.log": "2"}
    open_log(path, 0).close()
    assert [place.name for place in path.parent.iterdir()] == ["m.log"]


def contents(folder: Path) -> dict[str, str]:
    return {place.name: place.read_text() for place in folder.iterdir()}


def test_a_full_log_becomes_an_earlier_one_while_its_worker_goes_on_writing(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    log = WorkerLog(path)
    with open_log(path) as writer:
        for text in ("one", "two", "three", "four"):
            writer.write(text.encode())
            writer.flush()
            log.rotate(2, 2)
            log.rotate(2, 2)  # an empty one stays
        writer.write(b".")
        writer.flush()
        log.rotate(2, 2)

    assert contents(tmp_path) == {"m.log": ".", "m.1.log": "four", "m.2.log": "three"}


def test_the_cause_is_found_also_if_the_log_was_full_after_it(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    log = WorkerLog(path)
    with open_log(path) as writer:
        writer.write(b"torch.OutOfMemoryError: CUDA out of memory\n")
        writer.flush()
        log.rotate(10, 0)
        assert log.diagnose(1).key == "gpu-memory-unknown"
        writer.write(b"the last line\n")
        writer.flush()

    assert log.diagnose(1).key == "gpu-memory-unknown"
    assert log.tail() == "torch.OutOfMemoryError: CUDA out of memory\nthe last line"


def test_an_earlier_log_of_another_load_says_nothing_about_this_one(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    with open_log(path, 1) as writer:
        writer.write(b"torch.OutOfMemoryError: CUDA out of memory\n")
    open_log(path, 1).close()

    assert WorkerLog(path).tail() == ""


@pytest.mark.parametrize("path", ["/dev/full", "/nowhere/m.log"])
def test_what_is_no_file_is_left_as_it_is(path: str) -> None:
    WorkerLog(Path(path)).rotate(10, 1)
