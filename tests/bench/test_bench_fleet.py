"""Loads that are spread over processes, in real time."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from dataclasses import replace

import orjson
import pytest
from scripted_model import Script, serving_beside

from vllama.bench.fleet import CLIENTS_PER_PROCESS, Fleet, processes_for, split
from vllama.bench.generator import RequestLoad, Target
from vllama.bench.prompts import PromptSource
from vllama.errors import ServerError

LOAD = RequestLoad(Target("", "ollama", "m"), PromptSource(), 5, clients=4, iterations=10, warmup=1, timeout=20)


def at(url: str, **fields: object) -> RequestLoad:
    return replace(LOAD, target=replace(LOAD.target, url=url), **fields)  # type: ignore[arg-type]


def test_the_parts_of_a_load_are_the_load() -> None:
    parts = split(replace(LOAD, keep_texts=3), 3)

    assert [part.clients for part in parts] == [2, 1, 1]
    assert [part.iterations for part in parts] == [4, 3, 3]
    assert [part.keep_texts for part in parts] == [1, 1, 1]
    assert [(part.turn, part.stride) for part in parts] == [(0, 3), (1, 3), (2, 3)]


def test_there_are_no_more_processes_than_clients() -> None:
    assert len(split(LOAD, 9)) == 4


def test_many_clients_and_high_rates_need_several_processes() -> None:
    assert processes_for(replace(LOAD, clients=CLIENTS_PER_PROCESS)) == 1
    assert processes_for(replace(LOAD, clients=CLIENTS_PER_PROCESS + 1)) == 2
    assert processes_for(replace(LOAD, rate=1000.0, output_tokens=50)) == 3


def test_two_processes_measure_together_load_after_load_and_share_one_clock() -> None:
    script = Script(first=0.01, per_token=0.002)
    counts: list[int] = []
    with serving_beside(script) as url, Fleet(2) as fleet:
        seen = fleet.run(at(url, keep_texts=4), counts.append)
        again = fleet.run(at(url, iterations=4), counts.append)

    assert (len(seen.samples), seen.processes, seen.interrupted) == (10, 2, False)
    assert {sample.outcome for sample in (*seen.samples, *again.samples)} == {"ok"}
    assert max(sample.end for sample in seen.samples) < min(sample.start for sample in again.samples)
    assert counts[-1] == 4
    assert 0 < seen.cpu < 1
    assert [kept.text for kept in seen.kept] == [" word" * 5] * 4
    assert sorted(kept.number for kept in seen.kept) == [0, 1, 2, 3]


def test_in_real_time_no_figure_is_shorter_than_the_scripts() -> None:
    with serving_beside(Script(first=0.02, per_token=0.004)) as url, Fleet() as fleet:
        seen = fleet.run(at(url, clients=1, iterations=5), lambda ended: ended)

    for sample in seen.samples:
        assert sample.first is not None
        assert sample.first - sample.start >= 20_000_000
        assert sample.end - sample.start >= 36_000_000


def test_a_warm_up_that_fails_is_the_servers_error_and_the_next_load_runs() -> None:
    with serving_beside(Script()) as url, Fleet(2) as fleet:
        with pytest.raises(ServerError, match="model 'x' not found"):
            fleet.run(replace(at(url), target=Target(url, "ollama", "x")), lambda ended: ended)
        assert len(fleet.run(at(url), lambda ended: ended).samples) == 10


def test_ctrl_c_keeps_what_was_measured() -> None:
    script = Script(first=0.01, per_token=0.001)

    def interrupt(ended: int) -> None:
        if ended >= 4 and script.first < 1000:
            script.first = 1000.0
            raise KeyboardInterrupt

    with serving_beside(script) as url, Fleet(2) as fleet:
        seen = fleet.run(at(url, iterations=10_000), interrupt)

    outcomes = [sample.outcome for sample in seen.samples]
    assert seen.interrupted
    assert outcomes.count("ok") >= 4
    assert outcomes.count("cancelled") >= 1


def test_a_scripted_server_ends_while_a_client_still_waits_for_its_reply() -> None:
    body = b'{"model":"m","messages":[{"content":"Hello"}]}'
    script = Script(first=10_000.0)
    with contextlib.ExitStack() as held:
        with serving_beside(script) as url:
            client = held.enter_context(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30))
            client.sendall(b"POST /api/chat HTTP/1.1\r\nhost: m\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
            assert script.running == 1
        assert script.running == 0


def test_a_process_whose_master_was_killed_ends_without_a_word() -> None:
    with serving_beside(Script(first=0.5)) as url:
        order = orjson.dumps(at(url, warmup=0, iterations=1, clients=1)) + b"\n"
        with subprocess.Popen(
            [sys.executable, "-m", "vllama.bench.generator_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            process.stdin.write(order)
            process.stdin.flush()
            assert orjson.loads(process.stdout.readline()) == {"ready": True}
            process.stdout.close()
            process.stdin.close()
            assert process.wait(30) == 1
            assert process.stderr.read() == b""
