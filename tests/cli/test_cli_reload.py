from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from vllama.gateway.pid_file import PidFile

Vllama = Callable[..., Any]


def test_reload_signals_the_server_of_the_store_and_the_port(
    vllama: Vllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:4711")
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        heard.append(number)

    before = signal.signal(signal.SIGHUP, hear)
    server = PidFile(tmp_path, 4711)
    server.hold()
    try:
        result = vllama("reload")
    finally:
        server.release()
        signal.signal(signal.SIGHUP, before)
    assert (result.exit_code, result.stdout) == (
        0,
        f"server {os.getpid()} is reading its settings again; its log lists the changes\n",
    )
    assert heard == [signal.SIGHUP]


def test_reload_without_a_server_says_which_file_nobody_holds(
    vllama: Vllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:4711")
    result = vllama("reload")
    assert result.exit_code == 3
    assert f"no running server found on this machine ({tmp_path / 'server-4711.pid'}" in result.stderr


def test_a_file_of_settings_that_is_wrong_is_said_at_once(
    vllama: Vllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.toml").write_text("colour = 1")
    monkeypatch.setenv("VLLAMA_SETTINGS", str(tmp_path / "settings.toml"))
    result = vllama("reload")
    assert result.exit_code == 2
    assert "unknown setting 'colour'" in result.stderr
