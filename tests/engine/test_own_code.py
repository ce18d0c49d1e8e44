"""A model that needs code of its own: it is refused, and nothing is run, until it is trusted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.conftest import StartServer
from engine.server import environment
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CODE = """
from pathlib import Path
from transformers import LlamaConfig
Path({mark!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that is there once the model's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def snapshot(tiny_snapshot: Path, tmp_path: Path, ran: Path) -> Path:
    """The tiny model with a configuration that neither vLLM nor transformers know."""
    own = tmp_path / "own"
    shutil.copytree(tiny_snapshot, own)
    config = json.loads((own / "config.json").read_bytes())
    config |= {"model_type": "own_llama", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "configuration_own.py").write_text(CODE.format(mark=str(ran)))
    return own


def test_code_of_a_model_is_run_only_where_that_model_is_trusted(
    store: ModelStore, start_server: StartServer, snapshot: Path, ran: Path, tmp_path: Path
) -> None:
    server = start_server(environ={"HF_HOME": str(tmp_path / "huggingface")})
    pull(store, "own", "--from", str(snapshot))
    status, message = server.refusal("/api/generate", {"model": "own", "prompt": "Hi"})
    assert status == 500
    assert f"vllama pull --trust-remote-code own:latest --from {snapshot}" in message
    assert not ran.exists()

    pull(store, "own", "--from", str(snapshot), "--trust-remote-code")
    record = server.ask("/api/generate", {"model": "own", "prompt": "Hi", "options": {"num_predict": 3}})
    assert record["eval_count"] == 3
    assert ran.exists()
    told = server.client.post("/api/show", json={"model": "own"}).json()
    assert told["model_info"]["vllama.remote_code"] == "trusted, run by the worker: configuration_own.py"


def pull(store: ModelStore, *arguments: str) -> None:
    command = [sys.executable, "-m", "vllama", "pull", *arguments]
    subprocess.run(command, env=environment(store.root, "pull"), check=True, capture_output=True)
