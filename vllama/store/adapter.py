"""Import of LoRA adapters into the store, from uploads or from a local directory.

An adapter becomes its own snapshot, always inside the store: links to uploads, copies, or converted files.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from pathlib import Path, PurePosixPath

from vllama.errors import RequestError
from vllama.store.blobs import parse_digest
from vllama.store.copying import chunks_of
from vllama.store.description import describe
from vllama.store.foreign_files import open_regular
from vllama.store.gguf import adapter as gguf_adapter
from vllama.store.gguf.limits import turn
from vllama.store.hashing import hash_files, sha256_of
from vllama.store.manifest import Adapter, Manifest, ManifestFile, content_digest, sha256_of_json
from vllama.store.model_import import take_upload
from vllama.store.model_store import ModelStore
from vllama.store.peft import CONFIG, WEIGHTS, check_fit
from vllama.store.progress import Progress
from vllama.store.snapshot import PICKLES
from vllama.store.writes import disk_errors, new_file, store_writes

Steps = Generator[Progress, None, Adapter]

_GGUF = "adapter.gguf"
_PARSING = Progress("parsing adapter")
_NEEDED = f"a LoRA adapter in PEFT's layout is needed, {CONFIG} and {WEIGHTS}, or one in GGUF"


def from_uploads(store: ModelStore, base: Manifest, files: Mapping[str, str]) -> Steps:
    """Create an adapter for the base model from uploads: `files` maps paths to `sha256:…`.

    Raises RequestError if it cannot be served, StoreError if a file was not uploaded.
    """
    checksums = {path: parse_digest(digest) for path, digest in files.items()}
    wanted = {PurePosixPath(path).name: checksums[path] for path in _choose(checksums)}
    yield _PARSING
    if CONFIG not in wanted:
        (sha256,) = wanted.values()
        with (yield from store.turn(f"adapter-{sha256}")) as staging:
            take_upload(store, sha256, staging / _GGUF)
            return (yield from _converted(store, base, staging))
    key = sha256_of_json(wanted)
    with (yield from store.turn(f"adapter-{key}")) as staging:
        for name, sha256 in wanted.items():
            take_upload(store, sha256, staging / "snapshot" / name)
        sizes = {name: (staging / "snapshot" / name).stat().st_size for name in wanted}
        made_of = tuple(ManifestFile(name, sizes[name], wanted[name]) for name in sorted(wanted))
        return _adopt(store, base, staging / "snapshot", made_of)


def from_path(store: ModelStore, base: Manifest, path: Path) -> Steps:
    """Create an adapter from a directory, or a file in it, by copying. Raises the errors of `from_uploads`."""
    path = path.expanduser().resolve()
    if path.is_file() and path.name not in {CONFIG, WEIGHTS}:
        directory, wanted = path.parent, _choose([path.name])
    else:
        directory = path if path.is_dir() else path.parent
        wanted = _choose(file.name for file in directory.iterdir() if file.is_file())
    if CONFIG not in wanted:
        return (yield from from_gguf(store, base, directory / wanted[0]))
    yield _PARSING
    key = sha256_of(str(path).encode())
    with (yield from store.turn(f"adapter-{key}")) as staging:
        snapshot = staging / "snapshot"
        with store_writes():
            snapshot.mkdir()
        for name in wanted:
            _copy(directory / name, snapshot / name)
        made_of = yield from hash_files(snapshot, sorted(wanted))
        return _adopt(store, base, snapshot, made_of)


def from_gguf(store: ModelStore, base: Manifest, path: Path) -> Steps:
    """Make an adapter over the base of a GGUF file on this machine, which is only read. Raises as `from_uploads`."""
    yield _PARSING
    key = sha256_of(str(path).encode())
    with (yield from store.turn(f"adapter-{key}")) as staging:
        with store_writes():
            (staging / _GGUF).symlink_to(path)
        return (yield from _converted(store, base, staging))


def check(manifest: Manifest) -> None:
    """Raise RequestError if the adapter differs from its manifest or does not fit the base; ManifestCorrupt."""
    if manifest.adapter and check_fit(manifest.adapter.snapshot, describe(manifest)) != manifest.adapter.rank:
        raise RequestError(
            f"the rank of the adapter of '{manifest.name}' differs from its manifest; create the model again"
        )


def _converted(store: ModelStore, base: Manifest, staging: Path) -> Steps:
    """Convert the GGUF adapter in the staging directory."""
    yield Progress("converting adapter")
    snapshot = staging / "snapshot"
    with (yield from turn()):
        gguf_adapter.convert(staging / _GGUF, snapshot, base.snapshot)
    made_of = yield from hash_files(snapshot, sorted((CONFIG, WEIGHTS)))
    return _adopt(store, base, snapshot, made_of)


def _copy(source: Path, target: Path) -> None:
    with disk_errors(f"read {source}"):
        file = open_regular(source)
    with file, new_file(target) as out:
        for chunk in chunks_of(file):
            with store_writes():
                out.write(chunk)


def _adopt(store: ModelStore, base: Manifest, snapshot: Path, files: tuple[ManifestFile, ...]) -> Adapter:
    rank = check_fit(snapshot, describe(base))
    return Adapter(store.adopt(snapshot, content_digest(files)), files, rank)


def _choose(paths: Iterable[str]) -> list[str]:
    """Return the paths of the two PEFT files, or of the only GGUF file. Raises RequestError if there are neither."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(PurePosixPath(path).name, []).append(path)
    ggufs = [name for name in by_name if name.endswith(".gguf")]
    if len(ggufs) > 1 or any(len(by_name.get(name, ())) > 1 for name in (CONFIG, WEIGHTS)):
        raise RequestError("only one adapter is currently supported")  # Ollama's message
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
