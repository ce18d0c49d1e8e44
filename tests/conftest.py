"""What holds for every test."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sampling import count
from selected_files import has_no_selected_test
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

# No deadline: other tests use the machine at the same time.
settings.register_profile("vllama", max_examples=count(40, 100), deadline=None)
settings.load_profile("vllama")


class _BySharedServers(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps tests together that share servers: the files of a folder of clients, or those of one file.

    xdist's own groups (`--dist loadgroup`, 3.8) have no effect with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder.endswith(("clients", "browser")) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute the tests among processes (xdist's hook); None where xdist's way is right."""
    return _BySharedServers(config, log) if config.getoption("dist") == "loadscope" else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files that have no test with the marks that `-m` selects: some of them import torch or vLLM."""
    if not collection_path.name.startswith("test_") or collection_path.suffix != ".py":
        return None
    return True if has_no_selected_test(collection_path.read_text(encoding="utf-8"), config.option.markexpr) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests marked `slow` to the full run."""
    for item in items:
        if item.get_closest_marker("slow") and not count(0, 1):
            item.add_marker(pytest.mark.skip("slow: only in the full run, scripts/test --slow"))


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes that tests start: a shell starts jobs in the background without it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
