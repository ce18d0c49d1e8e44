"""A headless browser that opens the pages which vllama writes."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

OpenPage = Callable[[Path], dict[str, Any]]

_HERE = Path(__file__).parent
_LEAST_NODE = 20
_SECONDS = 120
# The package brings a font, as a machine may have none.
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{0}/fonts</dir><cachedir>{0}/font-cache</cachedir></fontconfig>
"""


@pytest.fixture(scope="session")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a file, and return what `open_page.mjs` says of it; skipped where this machine cannot run the browser."""
    node = shutil.which("node")
    if node is None or _major_version(node) < _LEAST_NODE:
        pytest.skip(f"no Node.js {_LEAST_NODE} or newer: no page was opened in a browser")
    if platform.machine() != "x86_64":
        pytest.skip(f"the tests' browser is for x86_64, and this is {platform.machine()}: no page was opened")
    if not (_HERE / "node_modules").exists():
        pytest.skip("no page was opened in a browser: scripts/install --clients has not fetched one")
    unpacked = tmp_path_factory.mktemp("browser")
    (unpacked / "fonts.conf").write_text(_FONTS.format(unpacked))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(unpacked),
        "TMPDIR": str(unpacked),
        "FONTCONFIG_FILE": str(unpacked / "fonts.conf"),
        # Makes the package unpack the libraries, too, that a bare Linux lacks.
        "AWS_EXECUTION_ENV": f"AWS_Lambda_nodejs{_LEAST_NODE}.x",
    }

    def open_page(file: Path) -> dict[str, Any]:
        command = [node, str(_HERE / "open_page.mjs"), str(file), *_picture()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode != 0:
            pytest.fail(f"the browser ended with {done.returncode}:\n{done.stderr}", pytrace=False)
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said

    yield open_page
    shutil.rmtree(unpacked)


def _picture() -> list[str]:
    """Where to keep pictures of the pages, for people who want to look."""
    place = os.environ.get("VLLAMA_TEST_PICTURES")
    return [str(Path(place) / "page")] if place else []


def _major_version(node: str) -> int:
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.removeprefix("v").partition(".")[0])
