"""What is read out of a worker's log."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from vllama.scheduler.worker_log import WorkerLog

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
from vllama.scheduler.worker_log import WorkerLog
resource.setrlimit(resource.RLIMIT_AS, ({2 * GIB}, {2 * GIB}))
log = WorkerLog(pathlib.Path("/dev/full"))
print(log.diagnose(1).cause, log.load_progress().phase)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("vLLM ended without a word (exit status 1)"), done.stderr[-500:]
