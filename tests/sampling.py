"""Choose how many cases a long test runs: a sample in each push, all of them in the full run."""

import os


def count(sample: int, full: int) -> int:
    """Return `full` when the environment variable `VLLAMA_TEST_FULL` is set, else `sample`.

    For tests whose cost grows with the number of cases, such as simulated coverage of confidence intervals.
    """
    return full if full_run() else sample


def full_run() -> bool:
    """Return whether the environment variable `VLLAMA_TEST_FULL` is set."""
    return bool(os.environ.get("VLLAMA_TEST_FULL"))
