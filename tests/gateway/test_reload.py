"""SIGHUP and `vllama reload`: settings are read again, and no stream is dropped."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_worker import FakeLauncher, within

from vllama.durations import ZERO, from_seconds
from vllama.errors import ServerUnreachable, SettingsError
from vllama.gateway import signals
from vllama.gateway.pid_file import PidFile
from vllama.settings import Settings

from .conftest import MODEL
from .test_serve import BODY, GENERATE, Serve, Serving, serve, settings, store

__all__ = ["serve", "settings", "store"]  # fixtures

pytestmark = pytest.mark.anyio

READ = "read the settings again"


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


async def hang_up(serving: Serving, caplog: pytest.LogCaptureFixture, until: str = "read the settings again") -> None:
    """Send SIGHUP, and return when the log says so."""
    with caplog.at_level(logging.INFO):
        serving.signal(signal.SIGHUP)
        while until not in caplog.text:
            await serving.get("/api/version")


async def test_what_can_change_does_and_what_cannot_is_said(
    serve: Serve, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = replace(
        settings,
        max_queue=0,
        keep_alive=from_seconds(7),
        sleep_timeout=None,
        host="0.0.0.0:1",
        models=tmp_path / "other",
    )
    launcher: list[FakeLauncher] = []
    async with serve(reread=lambda: new, prepare=launcher.append) as serving:
        await hang_up(serving, caplog)
        assert "max_queue is now 0 (was 512); takes effect at once" in caplog.text
        assert "keep_alive is now 7 s (was 300 s); takes effect for models" in caplog.text
        assert "sleep_timeout is now no limit (was 3600 s); takes effect at once" in caplog.text
        assert "takes effect for models loaded from now on" in caplog.text
        assert f"host is now 0.0.0.0:1 (was {settings.host}); takes effect after a restart" in caplog.text
        assert launcher[0].settings == replace(new, host=settings.host, models=settings.models)


async def test_a_stream_goes_on_while_the_settings_are_read_again(
    serve: Serve, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(MODEL, reread=lambda: replace(settings, max_loaded_models=1)) as serving:
        worker, exchange, client = await serving.begin_stream(GENERATE)
        await hang_up(serving, caplog)
        exchange.finish(b"b\n")
        assert await client.chunks() == b"b\n"
        assert not worker.exited.done()


async def test_a_new_origin_is_let_in_at_once(
    serve: Serve, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def asked_from(origin: str) -> int:
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            return (await client.get(f"{serving.url}/api/tags", headers={"origin": origin})).status_code

    async with serve(reread=lambda: replace(settings, origins=("https://chat.example",))) as serving:
        assert await asked_from("https://chat.example") == 403
        await hang_up(serving, caplog)
        assert await asked_from("https://chat.example") == 200


async def test_a_file_that_is_wrong_changes_nothing(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Settings:
        raise SettingsError("settings.toml: there is no setting 'colour'")

    async with serve(reread=fail) as serving:
        await hang_up(serving, caplog, until="kept the old settings")
        assert "there is no setting 'colour'" in caplog.text
        assert serving.launcher.settings is None


async def test_the_drain_is_the_one_that_was_read_last(
    serve: Serve, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(reread=lambda: replace(settings, drain_timeout=ZERO), drain_timeout=from_seconds(3600)) as serving:
        sent = await serving.connect()
        sent.request("POST", GENERATE, BODY)
        await (await within(serving.launcher.started.get())).next_exchange()
        await hang_up(serving, caplog)
        serving.signal()
        assert (await sent.head()).status == 503
        assert await within(serving.done) == 0


@pytest.mark.parametrize("survives", [False, True], ids=["as it is", "with nohup"])
async def test_a_terminal_that_goes_takes_the_server_along_unless_it_was_started_with_nohup(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, survives: bool
) -> None:
    terminal: list[Any] = [True]
    monkeypatch.setattr(signals, "_has_terminal", lambda: bool(terminal))
    if survives:
        monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)
    async with serve() as serving:
        await hang_up(serving, caplog)  # the terminal is there still: somebody wants a reload
        terminal.clear()
        serving.signal(signal.SIGHUP)
        if survives:
            assert (await serving.get("/api/version")).status_code == 200
        else:
            assert await within(serving.done) == 0


async def test_a_server_is_found_by_its_file_as_long_as_it_lives(
    serve: Serve, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as serving:
        with caplog.at_level(logging.INFO):
            assert PidFile(settings.models, serving.port).signal(signal.SIGHUP) == os.getpid()
            while READ not in caplog.text:
                await serving.get("/api/version")
    with pytest.raises(ServerUnreachable, match=f"no running server found on this machine .*server-{serving.port}.pid"):
        PidFile(settings.models, serving.port).signal(signal.SIGHUP)
    assert not list(settings.models.glob("*.pid"))


def test_a_file_that_a_killed_server_left_behind_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "server-1.pid").write_text(f"{os.getpid()}\n")
    with pytest.raises(ServerUnreachable):
        PidFile(tmp_path, 1).signal(signal.SIGKILL)


def test_a_server_goes_without_the_file_where_it_cannot_write_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    pid_file = PidFile(tmp_path / "file", 1)
    pid_file.hold()
    pid_file.release()
    assert "`vllama reload` will not find this server" in caplog.text


def test_a_link_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "server-1.pid").symlink_to(tmp_path / "victim")
    PidFile(tmp_path, 1).hold()
    assert (tmp_path / "victim").read_text() == "precious"
    assert "will not find this server" in caplog.text


def test_only_its_user_can_open_and_so_lock_the_pid_file(tmp_path: Path) -> None:
    path = tmp_path / "server-1.pid"
    path.touch(0o644)
    file = PidFile(tmp_path, 1)
    file.hold()
    assert path.stat().st_mode & 0o777 == 0o600
    file.release()
