"""LoRA adapters on their way into the store: of uploads, or of a directory on this machine.

An adapter becomes a snapshot of its own, always inside the store: links to uploads, copies, or what was converted.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path, PurePosixPath

from vllama.errors import RequestError
from vllama.store import gguf_adapter
from vllama.store.base import take_upload
from vllama.store.blobs import parse_digest
from vllama.store.description import describe
from vllama.store.hashing import hash_files, sha256_of
from vllama.store.manifest import Adapter, Manifest, ManifestFile, content_digest, sha256_of_json
from vllama.store.model_store import ModelStore
from vllama.store.peft import CONFIG, WEIGHTS, check_fit
from vllama.store.progress import Progress
from vllama.store.snapshot import PICKLES

Steps = Generator[Progress, None, Adapter]

_GGUF = "adapter.gguf"
_PARSING = Progress("parsing adapter")
_NEEDED = f"a LoRA adapter in PEFT's layout is needed, {CONFIG} and {WEIGHTS}, or one in GGUF"


def from_uploads(store: ModelStore, base: Manifest, files: Mapping[str, str]) -> Steps:
    """Make an adapter over the base of uploads: `files` maps paths to `sha256:…`.

    Raises RequestError where it is none that can be served, StoreError where a file was not uploaded.
    """
    checksums = {path: parse_digest(digest) for path, digest in files.items()}
    wanted = {PurePosixPath(path).name: checksums[path] for path in _choose(checksums)}
    yield _PARSING
    if CONFIG not in wanted:
        (sha256,) = wanted.values()
        with store.staging(f"adapter-{sha256}") as staging:
            take_upload(store, sha256, staging / _GGUF)
            return (yield from _converted(store, base, staging))
    key = sha256_of_json(wanted)
    with store.staging(f"adapter-{key}") as staging:
        for name, sha256 in wanted.items():
            take_upload(store, sha256, staging / "snapshot" / name)
        sizes = {name: (staging / "snapshot" / name).stat().st_size for name in wanted}
        made_of = tuple(ManifestFile(name, sizes[name], wanted[name]) for name in sorted(wanted))
        return _adopt(store, base, staging / "snapshot", made_of)


def from_path(store: ModelStore, base: Manifest, path: Path) -> Steps:
    """Make an adapter over the base of a directory, or of a file in it, which are copied. Raises as `from_uploads`."""
    path = path.expanduser().resolve()
    if path.is_file() and path.name not in {CONFIG, WEIGHTS}:
        directory, wanted = path.parent, _choose([path.name])
    else:
        directory = path if path.is_dir() else path.parent
        wanted = _choose(file.name for file in directory.iterdir() if file.is_file())
    yield _PARSING
    key = sha256_of(str(path).encode())
    with store.staging(f"adapter-{key}") as staging:
        if CONFIG not in wanted:
            (staging / _GGUF).symlink_to(directory / wanted[0])
            return (yield from _converted(store, base, staging))
        snapshot = staging / "snapshot"
        snapshot.mkdir()
        for name in wanted:
            shutil.copyfile(directory / name, snapshot / name)
        made_of = yield from hash_files(snapshot, sorted(wanted))
        return _adopt(store, base, snapshot, made_of)


def check(manifest: Manifest) -> None:
    """Raise RequestError where the adapter is not what the manifest says, or does not fit its base; ManifestCorrupt."""
    if manifest.adapter and check_fit(manifest.adapter.snapshot, describe(manifest)) != manifest.adapter.rank:
        raise RequestError(f"the adapter of '{manifest.name}' has not the rank that its manifest says")


def _converted(store: ModelStore, base: Manifest, staging: Path) -> Steps:
    """Make an adapter of a GGUF file in the staging directory."""
    yield Progress("converting adapter")
    snapshot = staging / "snapshot"
    gguf_adapter.convert(staging / _GGUF, snapshot, base.snapshot)
    made_of = yield from hash_files(snapshot, sorted((CONFIG, WEIGHTS)))
    return _adopt(store, base, snapshot, made_of)


def _adopt(store: ModelStore, base: Manifest, snapshot: Path, files: tuple[ManifestFile, ...]) -> Adapter:
    rank = check_fit(snapshot, describe(base))
    return Adapter(store.adopt(snapshot, content_digest(files)), files, rank)


def _choose(paths: Iterable[str]) -> list[str]:
    """Return the paths of the two files that count, or of the only GGUF. Raises RequestError where there is neither."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(PurePosixPath(path).name, []).append(path)
    ggufs = [name for name in by_name if name.endswith(".gguf")]
    if len(ggufs) > 1 or any(len(by_name.get(name, ())) > 1 for name in (CONFIG, WEIGHTS)):
        raise RequestError("only one adapter is currently supported")  # Ollama's words
    if WEIGHTS not in by_name:
        if ggufs:
            return by_name[ggufs[0]]
        raise RequestError(_why_no_weights(by_name))
    if CONFIG not in by_name:
        raise RequestError(f"the adapter has no {CONFIG}; {_NEEDED}")
    return [by_name[CONFIG][0], by_name[WEIGHTS][0]]


def _why_no_weights(names: Iterable[str]) -> str:
    pickles = sorted(name for name in names if PurePosixPath(name).suffix in PICKLES)
    if pickles:
        return (
            f"the adapter's weights are pickle only ({', '.join(pickles)}), which can run any code when it is read; "
            "save it again with PEFT's save_pretrained, which writes safetensors"
        )
    if "adapters.safetensors" in names:
        return f"adapters.safetensors is an adapter of MLX; {_NEEDED}"
    return f"the adapter has no {WEIGHTS}; {_NEEDED}"
