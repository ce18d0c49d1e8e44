"""Compiled code of models, kept in the store so that the next start need not compile again.

Models of one configuration share a directory, which vLLM gets as VLLM_CACHE_ROOT. vLLM keys its contents by its own
version, torch, the GPU, the configuration, flags and variables (`VllmConfig.compute_hash`,
`vllm.envs.compile_factors`), and by the model's path where weights are quantized (vllama.worker.shared_code). Engines
execute this code, so only the owner may be able to write there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import orjson

from vllama.store.foreign_files import read_bounded
from vllama.store.manifest import Manifest, sha256_of_json

log = logging.getLogger(__name__)

_FOLDER = "cache"
_SHARED = "shared"
_CONFIG = "config.json"
_MOST_CONFIG = 4 << 20
"""Bytes of a config.json that are read."""

_ORIGIN = frozenset({"_name_or_path", "transformers_version", "_commit_hash"})
"""Fields of config.json that change no computation."""

_MODELINFOS = "modelinfos"
"""vLLM's cached facts about architectures (JSON with the checksum of its source), shared by all models."""


def key_of(manifest: Manifest) -> str:
    """Return the name of a model's cache, 64 hex: that of all models with the same configuration.

    Fields of config.json that tell only where a model comes from do not count.
    """
    try:
        config = orjson.loads(read_bounded(manifest.snapshot / _CONFIG, _MOST_CONFIG))
    except (OSError, ValueError):
        return manifest.weights_digest
    if not isinstance(config, dict):
        return manifest.weights_digest
    return sha256_of_json({name: value for name, value in config.items() if name not in _ORIGIN})


def directory(root: Path, key: str) -> Path:
    """Return the directory of the cache with this key (`key_of`), which may not exist; `root` is the store's.

    Copied to an equal machine along with the model, it saves the compilation there. `files` lists its contents.
    """
    return root / _FOLDER / key


def files(root: Path, key: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of a model's cache: their paths inside it and on disk."""
    top = directory(root, key)
    for folder, folders, names in os.walk(top, followlinks=True):
        folders[:] = [name for name in folders if not (Path(folder) / name).is_symlink() or name == _MODELINFOS]
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(top).as_posix(), path


def variables(root: Path, key: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that point an engine to its cache; none if the user has set VLLM_CACHE_ROOT."""
    if "VLLM_CACHE_ROOT" in environment:
        return {}
    own = directory(root, key)
    places = {
        "VLLM_CACHE_ROOT": own,
        "TRITON_CACHE_DIR": own / "triton",
        "TORCHINDUCTOR_CACHE_DIR": own / "inductor",
    }
    return {name: str(place) for name, place in places.items() if name not in environment}


def shared_variables(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables shared by all models, because libraries read them during import."""
    places = {"FLASHINFER_WORKSPACE_BASE": root / _FOLDER / _SHARED}
    return {name: str(place) for name, place in places.items() if name not in environment}


class CacheInUse:
    """A model's cache in use by an engine; `remove` does not remove it until `close`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Release the cache. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def use(root: Path, key: str) -> CacheInUse | None:
    """Prepare a model's cache for an engine; return None, with a warning, if a safe one is impossible."""
    top, own = root / _FOLDER, directory(root, key)
    shared = top / _SHARED / _MODELINFOS
    try:
        for folder in (top, top / _SHARED, shared, own):
            folder.mkdir(mode=0o700, parents=folder == top, exist_ok=True)
        if not _is_ours_alone(top):
            log.warning("not caching compiled code in %s: users other than its owner can write there", top)
            return None
        _link(own / _MODELINFOS, shared)
        descriptor = os.open(own, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        log.warning("not caching compiled code in %s: %s", top, error)
        return None
    with suppress(OSError):  # some network file systems cannot lock; then `remove` is not prevented
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return CacheInUse(own, descriptor)


def remove(path: Path) -> bool:
    """Remove one of `all_of`; return False if an engine uses it. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def all_of(root: Path) -> dict[str, Path]:
    """Return the caches of a store by their keys."""
    return {
        path.name: path
        for path in sorted((root / _FOLDER).glob("*"))
        if path.is_dir() and not path.is_symlink() and path.name != _SHARED
    }


def _is_ours_alone(path: Path) -> bool:
    state = path.lstat()
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid() and not state.st_mode & 0o022


def _link(link: Path, shared: Path) -> None:
    """Make `link` point to the shared directory; files that came with a model are moved there."""
    if link.is_symlink():
        return
    if link.is_dir():
        for path in link.iterdir():
            path.replace(shared / path.name)
        link.rmdir()
    with suppress(FileExistsError):  # another load of the same model
        link.symlink_to(Path("..") / shared.relative_to(shared.parents[1]))
