"""A campaign that is killed takes its server with it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from tiny_snapshot import write_snapshot

from faults.scene import stock
from faults.stand_in_vllm import install
from vllama.machine.processes import ProcessTree
from vllama.store.model_store import ModelStore

pytest.importorskip("setproctitle")

PATIENCE = 120

CAMPAIGN = """
import os, sys
from pathlib import Path
from faults.campaign import run
store, pythonpath = sys.argv[1:]
environ = {"PYTHONPATH": pythonpath, "VLLAMA_SPARE_WORKERS": "0"}
run(Path(store), 1000, 1, lambda result: print(result, flush=True), only=["clients leave"], environ=environ)
"""


@pytest.mark.timeout(2 * PATIENCE)
def test_no_process_of_a_server_is_left_when_its_campaign_is_killed(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    stock(store, write_snapshot(tmp_path / "tiny"))
    path = install(tmp_path / "vllm")["PYTHONPATH"]
    command = [sys.executable, "-c", CAMPAIGN, str(store.root), path]
    with ExitStack() as stack:
        campaign = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
        )
        stack.callback(campaign.kill)
        assert campaign.stdout is not None
        assert campaign.stdout.readline()  # a model is loaded, and the server goes on
        members = ProcessTree(campaign.pid).pids - {campaign.pid}
        assert len(members) >= 3, "a gateway, an API server and EngineCore"
        descriptors = [os.pidfd_open(pid) for pid in members]
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        campaign.kill()
        for descriptor in descriptors:
            assert select.select([descriptor], [], [], PATIENCE)[0], "a process outlives the campaign"
