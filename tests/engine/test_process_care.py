"""Processes start, fail, drain and die as they should, and none is ever left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from engine.conftest import StartServer
from engine.processes import wait_for
from engine.server import Record, Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

DIED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations "
    "or an internal error, check ollama server logs for details"
)
GONE = 20
"""Seconds in which every process of a dead tree must have ended."""


def long_chat(model: str, tokens: int = 4000) -> Record:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "options": {"temperature": 0, "num_predict": tokens},
    }


def runtime_directories(server: Server) -> list[Path]:
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    return list(base.glob(f"vllama-{server.process.pid}-*"))


def listening_ports(pid: int) -> set[int]:
    """Return the TCP ports on which a process listens."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(str(entry.readlink()))
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


# The start


def test_the_server_answers_after_little_computing_and_long_before_any_engine(
    start_server: StartServer, tiny: str
) -> None:
    server = start_server("--model", tiny, cold=True)

    assert server.client.get("/api/version").json().keys() == {"version"}
    assert "is ready" not in server.log
    used = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[11]
    # Other programs run here, so no clock tells; two of them double the processor time of a third. Imports of vLLM
    # take more than ten seconds.
    assert int(used) / os.sysconf("SC_CLK_TCK") < 3


def test_a_model_is_ready_only_when_it_has_produced_a_token(breakable: Server, tiny: str) -> None:
    worker = breakable.load(tiny)

    assert worker.metric("vllm:generation_tokens_total") >= 1


def test_a_flag_that_vllm_does_not_know_ends_the_server_with_vllms_words_before_any_load(
    start_server: StartServer, tiny: str
) -> None:
    alone = start_server("--bogus-flag", cold=True)
    with_model = start_server("--model", tiny, "--bogus-flag", "3")
    for server in (alone, with_model):
        assert server.wait() == 2
        assert "unrecognized arguments: --bogus-flag" in server.log
        assert "is ready" not in server.log
        server.tree.wait_until_gone(GONE)
        assert runtime_directories(server) == []


def test_cause_fix_and_log_are_in_the_error_when_vllm_cannot_load_a_model(
    breakable: Server, store: ModelStore, tiny_snapshot: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_snapshot, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchArchitecture"]}))
    name = ModelName.parse("broken")
    for _ in pull(store, name, from_path=broken):
        pass

    status, error = breakable.refusal("/api/chat", long_chat("broken"))
    store.remove(name)

    assert status == 500
    assert error == (
        "the model could not be loaded: vLLM does not support the model's architecture 'NoSuchArchitecture'; use "
        f"another model, or a version of vLLM that supports it; the worker's log: "
        f"{store.root / 'logs' / 'broken_latest.log'}"
    )
    assert "  fix: use another model, or a version of vLLM that supports it\n" in breakable.log
    assert "broken:latest" not in breakable.loaded()


def test_a_flag_that_the_model_cannot_bear_is_named_in_the_error(
    store: ModelStore, start_server: StartServer, tiny: str
) -> None:
    name = ModelName.parse("overlong")
    own = replace(store.get(ModelName.parse(tiny)), name=name, engine_flags=("--max-model-len", "99999999"))
    store.put(own)
    server = start_server()

    status, error = server.refusal("/api/generate", {"model": "overlong"})
    store.remove(name)

    assert status == 500
    assert "99999999" in error
    assert server.loaded() == []
    wait_for(lambda: len(server.tree.living()) == 1, "only the gateway is left", GONE)


def test_a_context_for_all_models_is_cut_to_what_a_model_has(start_server: StartServer, tiny: str) -> None:
    server = start_server("--max-model-len", "99999999")

    assert server.ask("/api/generate", {"model": tiny, "prompt": "x", "options": {"num_predict": 1}})["eval_count"] == 1
    assert "tiny:latest has a context of 8192 tokens; the 99999999 that are set for all models are cut" in server.log


# A worker that dies


def test_no_request_needs_a_compiler(breakable: Server, tiny: str) -> None:
    worker = breakable.load(tiny)
    extras = {"logprobs": True, "top_logprobs": 2, "format": "json", "stream": False}
    reply = breakable.post("/api/chat", {**long_chat(tiny, 4), **extras})
    if reply.status_code != 200:
        wait_for(lambda: not worker.main.lives and tiny not in breakable.loaded(), "the worker ends", GONE)

    assert reply.status_code == 200, reply.text


def test_a_model_computes_in_the_engines_own_process(breakable: Server, tiny: str) -> None:
    breakable.load(tiny)
    titles = [process.title for process in breakable.tree.living()]

    assert sum("EngineCore" in title for title in titles) == 1
    assert not [title for title in titles if "Worker" in title]


@pytest.mark.parametrize(
    "title",
    [
        pytest.param("--uds", id="the API server"),
        pytest.param("EngineCore", id="the engine"),
    ],
)
def test_when_a_process_of_a_worker_is_killed_clients_get_an_error_and_the_next_request_a_new_worker(
    breakable: Server, tiny: str, title: str
) -> None:
    worker = breakable.load(tiny)
    with breakable.stream("/api/chat", long_chat(tiny)) as records:
        next(records)
        processes = [process for process in breakable.tree.living() if process.pid != breakable.process.pid]
        next(process for process in processes if title in process.title).kill()
        *_, last = records
    reply = breakable.post("/api/chat", {**long_chat(tiny, 4), "stream": False})
    wait_for(lambda: not any(process.lives for process in processes), "the old processes end", GONE)

    assert last == {"error": DIED}
    assert reply.status_code == 200, reply.text
    assert reply.json()["eval_count"] == 4
    assert breakable.worker(tiny).main != worker.main


def test_a_worker_takes_no_connection_over_tcp_and_makes_no_temporary_file_for_its_rank(
    breakable: Server, tiny: str
) -> None:
    breakable.load(tiny)
    processes = [process for process in breakable.tree.living() if process.pid != breakable.process.pid]
    ports = set().union(*(listening_ports(process.pid) for process in processes))

    assert ports  # gloo's own
    for port in ports:
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), timeout=0.1)
    log = (breakable.store / "logs" / "tiny_latest.log").read_text(errors="replace")
    assert re.findall(r"distributed_init_method=file://(/[a-z]+)", log) == ["/proc"]


# A gateway that ends


def test_sigterm_lets_streams_finish_and_leaves_nothing(breakable: Server, tiny: str) -> None:
    breakable.load(tiny)
    with breakable.stream("/api/chat", long_chat(tiny, 600)) as records:
        next(records)
        breakable.terminate()
        wait_for(lambda: not _accepts(breakable), "the server accepts nothing more", 10)
        *_, last = records

    assert last["eval_count"] == 600
    assert breakable.wait() == 0
    breakable.tree.wait_until_gone(GONE)
    assert runtime_directories(breakable) == []


def _accepts(server: Server) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/api/version", timeout=5).status_code == 200
    return False


def test_sigterm_during_a_load_ends_the_load_and_leaves_nothing(start_server: StartServer, tiny: str) -> None:
    server = start_server("--model", tiny)
    wait_for(lambda: len(server.tree.living()) > 2, "the engine's process starts", 60)
    server.terminate()

    assert server.wait() == 0
    server.tree.wait_until_gone(GONE)
    assert runtime_directories(server) == []


def _imports(server: Server) -> bool:
    return any("libtorch" in Path(f"/proc/{worker.main.pid}/maps").read_text() for worker in server.workers())


def _engine_process_starts(server: Server) -> bool:
    workers = {worker.main.pid for worker in server.workers()}
    return any(
        process.parent in workers and "resource_tracker" not in process.title for process in server.tree.living()
    )


def _engine_loads(server: Server) -> bool:
    return bool(server.engines())


@pytest.mark.parametrize(
    "instant",
    [
        pytest.param(_imports, id="while the worker imports"),
        pytest.param(_engine_process_starts, id="while the engine's process starts"),
        pytest.param(_engine_loads, id="while the engine loads"),
    ],
)
def test_a_gateway_killed_during_a_load_leaves_no_process(
    start_server: StartServer, tiny: str, instant: Callable[[Server], bool]
) -> None:
    server = start_server("--model", tiny)
    wait_for(lambda: instant(server), "the instant comes")
    server.process.kill()

    server.tree.wait_until_gone(GONE)
    assert "is ready" not in server.log


def test_a_gateway_killed_with_a_model_at_work_leaves_no_process(breakable: Server, tiny: str) -> None:
    breakable.load(tiny)
    with breakable.stream("/api/chat", long_chat(tiny)) as records:
        next(records)
        breakable.process.kill()
        with pytest.raises(httpx.TransportError):
            list(records)

    breakable.tree.wait_until_gone(GONE)


def test_the_next_gateway_clears_away_what_a_killed_one_left_on_disk(start_server: StartServer) -> None:
    killed = start_server()
    assert killed.client.get("/api/version").status_code == 200
    killed.process.kill()
    killed.process.wait()
    assert runtime_directories(killed)

    assert start_server().client.get("/api/version").status_code == 200
    assert runtime_directories(killed) == []
