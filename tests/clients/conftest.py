"""What the tests of clients share: one server with four models, and a process for each client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engine.conftest import build, minilm, store, taught
from engine.server import Server
from vectors import cosine

from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

__all__ = ["minilm", "store", "taught"]

FRANCE = "The capital of France is Paris."
"""What SmolLM2 says to `uses.QUESTION` at temperature 0, with and without a system prompt."""

_ROOT = Path(__file__).parents[2]
_SCRIPTS = Path(__file__).parent / "scripts"
_NODE_MODULES = [Path(__file__).parent / folder / "node_modules" for folder in ("", "agents")]
_LEAST_NODE = 18  # as in scripts/install
_SECONDS = 240
_NOWHERE = "http://127.0.0.1:9"
"""Where nothing listens: the proxy for all but the server, so that a client that calls home fails."""


class Got(Mapping[str, Any]):
    """What each use of a client got, by the name of the use; asking for one that failed fails with its traceback."""

    def __init__(self, uses: dict[str, Any]) -> None:
        self._uses = uses

    def __getitem__(self, use: str) -> Any:
        got = self._uses[use]
        if isinstance(got, dict) and "traceback" in got:
            pytest.fail(got["traceback"], pytrace=False)
        return got

    def __iter__(self) -> Iterator[str]:
        return iter(self._uses)

    def __len__(self) -> int:
        return len(self._uses)


RunClient = Callable[..., Got]


@pytest.fixture(scope="session")
def tiny_vision(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a random model that sees."""
    name = ModelName.parse("tiny-vision")
    for _ in pull(store, name, from_path=build("tiny_vision_model.py", store, tmp_path_factory.mktemp("tiny-vision"))):
        pass
    return name.display


@pytest.fixture(scope="session")
def server(store: ModelStore, minilm: str, taught: str, tiny_vision: str) -> Iterator[Server]:
    """A server with models that chat, embed, call tools and think, and see, all loaded, and room for one more."""
    # The fifth is the chat model that a client asks for vectors: with four, each of these had to load again.
    # In float32 greedy words do not depend on the CPU: in bfloat16 near ties flip from kernel to kernel.
    small = ("--kv-cache-memory-bytes", "600000000", "--dtype", "float32")  # holds the context of each
    running = Server(store.root, *small, environ={"OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_MAX_LOADED_MODELS": "5"})
    try:
        loads = [("/api/generate", "smollm2:135m"), ("/api/generate", taught), ("/api/generate", tiny_vision)]
        with ThreadPoolExecutor() as pool:
            replies = pool.map(lambda load: running.ask(load[0], {"model": load[1]}), [*loads, ("/api/embed", minilm)])
        assert len(list(replies)) == 4
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def client_environment(
    server: Server, minilm: str, taught: str, tiny_vision: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """All that a client is told: where the server is, in its own variable, and not to call home."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path_factory.mktemp("home")),
        "CHAT_MODEL": "smollm2:135m",
        "EMBEDDING_MODEL": minilm,
        "TOOLS_MODEL": taught,
        "VISION_MODEL": tiny_vision,
        "OLLAMA_HOST": server.url,
        "OLLAMA_API_BASE": server.url,
        "OLLAMA_BASE_URL": f"{server.url}/v1",
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "OPENAI_API_KEY": "ollama",
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_API_KEY": "ollama",
        "HTTP_PROXY": _NOWHERE,
        "HTTPS_PROXY": _NOWHERE,
        "NO_PROXY": "127.0.0.1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "DO_NOT_TRACK": "1",
    }


@pytest.fixture(scope="session")
def run_python(client_environment: dict[str, str]) -> RunClient:
    """Run a script in an environment of `tests/clients/requirements`."""

    def run(script: str, environment: str = "current") -> Got:
        python = _ROOT / ".venv-clients" / environment / "bin" / "python"
        if not python.exists():
            pytest.fail(f"{python} is not there: run scripts/install --clients", pytrace=False)
        return _run([str(python), str(_SCRIPTS / f"{script}.py")], client_environment)

    return run


@pytest.fixture(scope="session")
def run_node(request: pytest.FixtureRequest) -> RunClient:
    """Run a script with Node.js; where that is missing or too old, the tests are skipped."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None or _major_version(node) < _LEAST_NODE:
        pytest.skip(f"no npm and Node.js {_LEAST_NODE} or newer: no JavaScript client was tested")
    for folder in _NODE_MODULES:
        if not folder.exists():
            pytest.fail(f"{folder} is not there: run scripts/install --clients", pytrace=False)
    environment = request.getfixturevalue("client_environment")
    return lambda script: _run([node, str(_SCRIPTS / f"{script}.mjs")], environment)


def _major_version(node: str) -> int:
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.removeprefix("v").partition(".")[0])


def _run(command: Sequence[str], environment: Mapping[str, str]) -> Got:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr}", pytrace=False)
    uses: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Got(uses)


def assert_black_is_not_white(answers: Sequence[str]) -> None:
    """Of a random model, one cannot ask more than that it sees a difference."""
    of_black, of_white = answers
    assert of_black
    assert of_white
    assert of_black != of_white


def assert_alike_texts_are_near(vectors: Sequence[Sequence[float]]) -> None:
    """Of the three texts of `uses.TEXTS`, the first two are of cats and the third of money."""
    cat, kitten, money = vectors
    assert {len(cat), len(kitten), len(money)} == {384}
    assert cosine(cat, kitten) > cosine(cat, money) + 0.2
