"""Causes of failed workers, found in real log text: logs/KEY.log, where a line before each excerpt says its origin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllama.scheduler.causes import Cause, Diagnosis, catalogue, cleaned, diagnose, diagnose_error, signals

LOGS = Path(__file__).parent / "logs"


def excerpts(key: str) -> list[tuple[str, str]]:
    """Where each excerpt of a file is from, and its text."""
    parts = re.split(r"^# (.+)\n", (LOGS / f"{key}.log").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


EXCERPTS = [
    pytest.param(path.stem, text, id=f"{path.stem} {number}")
    for path in sorted(LOGS.iterdir())
    for number, (_, text) in enumerate(excerpts(path.stem), 1)
]
KNOWN = [*catalogue(), *signals().values()]


@pytest.mark.parametrize(("key", "text"), EXCERPTS)
def test_a_log_shows_its_cause(key: str, text: str) -> None:
    found = diagnose(text, 1)

    assert found.key == key, found
    assert found.cause
    assert found.fix
    assert "\n" not in str(found)
    assert "{" not in str(found)


@pytest.mark.parametrize("cause", KNOWN, ids=lambda cause: cause.key)
def test_every_cause_has_a_log_that_shows_it(cause: Cause) -> None:
    assert (LOGS / f"{cause.key}.log").exists()


PATTERNS = [pytest.param(cause, pattern, id=pattern.pattern) for cause in catalogue() for pattern in cause.patterns]


@pytest.mark.parametrize(("cause", "pattern"), PATTERNS)
def test_every_pattern_finds_something_and_fills_the_lines_of_its_cause(cause: Cause, pattern: re.Pattern[str]) -> None:
    assert any(pattern.search(cleaned(text)) for _, text in excerpts(cause.key))
    assert set(re.findall(r"\{(\w+)\}", cause.text + cause.fix)) <= pattern.groupindex.keys()


def test_keys_are_given_once() -> None:
    keys = [cause.key for cause in KNOWN]
    assert len(keys) == len(set(keys))


def test_the_lines_that_a_user_reads() -> None:
    ((_, log), *_) = excerpts("gpu-memory-taken")
    assert diagnose(log) == Diagnosis(
        "gpu-memory-taken",
        "the GPU has 7.34 of 139.72 GiB free, but 125.75 GiB are required",
        "unload other models (vllama stop NAME), end other programs on the GPU (nvidia-smi lists them), "
        "or pass a smaller --gpu-memory-utilization",
    )


def test_an_unknown_cause_is_the_last_error_that_says_something_of_its_own() -> None:
    log = (
        "ValueError: first\n(EngineCore pid=1) KeyError: 'second'\nRuntimeError: Engine core initialization failed. See"
    )
    assert str(diagnose(log)) == "KeyError: 'second'; see the worker's log"


def test_a_long_error_is_cut() -> None:
    assert len(diagnose("ValueError: " + "x" * 5000).cause) == 400


def test_a_log_that_says_nothing_leaves_the_exit_status() -> None:
    assert diagnose("", 3).cause == "vLLM exited without an error message (exit status 3)"


@pytest.mark.parametrize(
    ("status", "key", "words"),
    [
        (-9, "killed", "SIGKILL, most likely by the kernel because memory ran out"),
        (-4, "illegal-instruction", "SIGILL: this CPU lacks instructions"),
        (-7, "shared-memory", "SIGBUS: shared memory"),
        (-11, "crash", "SIGSEGV"),
        (-10, "", "SIGUSR1"),
        (-63, "", "signal 63"),
    ],
)
def test_a_signal_tells_what_it_usually_means(status: int, key: str, words: str) -> None:
    found = diagnose("INFO nothing\n", status)
    assert found.key == key
    assert words in found.cause


def test_a_cause_in_the_log_tells_more_than_the_signal() -> None:
    assert diagnose("MemoryError\n", -6).key == "memory"


def test_the_code_of_a_traceback_is_no_message() -> None:
    log = '  File "x.py", line 1, in f\n    raise OSError("[Errno 28] No space left on device")\nKeyError: 1\n'
    assert diagnose(log).cause == "KeyError: 1"


def test_a_warning_that_only_mentions_an_error_is_no_cause() -> None:
    """vLLM's own, at each start with a low limit of open files."""
    log = "Found ulimit of 20000. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.\n"
    assert diagnose(log, 1).key == ""


def test_an_error_of_our_own_is_found_in_the_catalogue_too() -> None:
    error = PermissionError(13, "Permission denied", "/models/logs/m.log")
    assert str(diagnose_error(error)).startswith(
        "the server's user has no access to /models/logs/m.log; give access to"
    )
