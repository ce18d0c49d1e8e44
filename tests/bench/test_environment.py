from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from scripted_nvml import FakeGpu, FakeNvml

from vllama.bench.environment import commit, differences, hardware, manifest
from vllama.bench.gpus import Gpus
from vllama.bench.result import System

REPLIES: dict[str, Any] = {
    "/api/version": {"version": "0.24.0"},
    "/api/tags": {
        "models": [
            {"name": "other:latest", "digest": "0"},
            {"name": "tiny:latest", "digest": "abc", "modified_at": "2026-01-01T00:00:00Z"},
        ]
    },
    "/api/show": {"details": {"quantization_level": "BF16"}, "license": "a long text"},
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path in REPLIES
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(REPLIES.get(self.path)).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_the_manifest_tells_machine_versions_and_what_the_server_says_of_itself(url: str) -> None:
    found = manifest([System("a", url, "openai", "tiny")], Gpus(FakeNvml([FakeGpu()])))
    assert found["hardware"]["cores"] == len(os.sched_getaffinity(0))
    assert found["hardware"]["cpu"]
    assert found["hardware"]["gpus"] == [
        {"index": 0, "name": "NVIDIA H100", "memory_bytes": 80 << 30, "power_limit_w": 700.0}
    ]
    assert found["versions"]["driver"] == "580.1"
    assert found["versions"]["cuda"] == "13.1"
    server = found["servers"]["a"]
    assert server["answers"] == {
        "/api/version": {"version": "0.24.0"},
        "/api/show": {"details": {"quantization_level": "BF16"}},
        "/api/tags": {"name": "tiny:latest", "digest": "abc"},
    }
    assert server["local"] is True
    assert any("pytest" in word for word in server["commands"][0])
    assert json.loads(json.dumps(found)) == found


def test_a_server_that_is_down_has_no_answers() -> None:
    found = manifest([System("a", "http://127.0.0.1:9", "ollama", "tiny")], Gpus(FakeNvml()))
    assert found["servers"]["a"] == {"url": "http://127.0.0.1:9", "local": True, "answers": {}}


def test_without_a_gpu_the_hardware_is_the_rest() -> None:
    assert hardware(Gpus(FakeNvml(broken="Driver Not Loaded")))["gpus"] == []


def _git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.invalid")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_is_that_of_the_checkout_and_says_whether_files_were_changed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    assert commit(package) is None
    _git(tmp_path, "init", "-q")
    (package / "__init__.py").write_text("")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    clean = commit(package)
    assert clean is not None
    assert len(clean["revision"]) == 40
    assert clean["changed"] is False
    (package / "__init__.py").write_text("changed = True")
    assert commit(package) == {**clean, "changed": True}


def test_an_installed_package_within_a_foreign_checkout_has_no_commit(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    (tmp_path / "README").write_text("of somebody else")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    package = tmp_path / "site-packages"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit(package) is None


def test_differing_environments_are_named_by_entry() -> None:
    one = {"hardware": {"cpu": "A", "gpus": [{"name": "H100"}]}, "versions": {"python": "3.11"}}
    other = {"hardware": {"cpu": "A", "gpus": [{"name": "H200"}]}, "versions": {"python": "3.12", "cuda": "13.0"}}
    assert differences(one, other) == {
        "hardware.gpus[0].name": ("H100", "H200"),
        "versions.python": ("3.11", "3.12"),
        "versions.cuda": ("", "13.0"),
    }
    assert differences(one, one) == {}
