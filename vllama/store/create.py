"""Creation of models from another model or from files, with the changes of a Modelfile.

Steps are yielded as records in the form of `/api/create` (contract §1.9).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllama.errors import ModelNotFound, RequestError
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.ollama.templates import check_template
from vllama.store import adapter
from vllama.store.description import describe, gguf_precision
from vllama.store.layers import layers
from vllama.store.manifest import ChatMessage, Manifest
from vllama.store.model_import import from_files, from_path, release
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.pull import pull
from vllama.store.sources.pull_steps import has_precision

Puller = Callable[[ModelStore, ModelName], Generator[Progress, None, None]]
Check = Callable[[Manifest], None]
"""A check that raises RequestError if the model cannot be served."""


def create(
    store: ModelStore,
    name: ModelName,
    changes: Changes,
    *,
    base: str = "",
    files: Mapping[str, str] | None = None,
    path: Path | None = None,
    projector_path: Path | None = None,
    adapters: Mapping[str, str] | None = None,
    adapter_path: Path | None = None,
    puller: Puller = pull,
    check: Check = lambda _: None,
) -> Generator[Progress, None, None]:
    """Create a model and store it under this name; the last step is "success".

    It is created from the model named `base`, which is pulled if it is not stored; or from uploaded `files`, as in
    CreateRequest; or from a GGUF file or snapshot directory at `path`, and the GGUF file of its vision tower at
    `projector_path`. Files are shared with the base, not copied.
    `adapters` are the uploaded files of a LoRA adapter, `adapter_path` is its directory; it replaces the base's.
    `check` is called before the model is stored. Used uploads are removed. Raises RequestError if the model cannot be
    created as requested, StoreError if files are unusable or unavailable. Closing the generator cancels the work; a
    stored name stays unchanged.
    """
    check_template(changes.template)
    with store.session() as session:
        if base:
            found = yield from _named(session, ModelName.parse(base), puller)
        elif files is not None:
            found = yield from from_files(session, name, files)
        elif path is not None:
            found = yield from from_path(session, name, path, projector_path)
        else:
            raise RequestError("neither 'from' or 'files' was specified")
        _check_level(found, changes.quantize)
        _check_precision(store, found)
        if adapters:
            found = replace(found, adapter=(yield from adapter.from_uploads(session, found, adapters)))
        elif adapter_path is not None:
            found = replace(found, adapter=(yield from adapter.from_path(session, found, adapter_path)))
        check(found)
        yield from store_derived(session, found, name, changes)
    release(store, [*(files or {}).values(), *(adapters or {}).values()])
    yield Progress("success")


def store_derived(
    store: ModelStore, base: Manifest, name: ModelName, changes: Changes
) -> Generator[Progress, None, None]:
    """Store the model that `derive` returns. Raises StoreError."""
    manifest = derive(base, name, changes, datetime.now(UTC))
    known = {digest for stored in store.list() for digest in layers(stored)}
    for digest in layers(manifest):
        yield Progress(f"{'using existing' if digest in known else 'creating new'} layer {digest}")
    yield Progress("writing manifest")
    store.put(manifest)


def derive(base: Manifest, name: ModelName, changes: Changes, now: datetime) -> Manifest:
    """Return the manifest of the base with the changes and another name.

    Changes that repeat the base's files are omitted, so that the Modelfile of `/api/show` creates the same model again.
    Raises ManifestCorrupt if a file is damaged or missing.
    """
    own = describe(replace(base, parameters={}, template="", license=""))
    template = changes.template or base.template
    license_text = changes.license or base.license
    return replace(
        base,
        name=name,
        parameters={
            key: value
            for key, value in {**base.parameters, **changes.parameters}.items()
            if value is not None and not _same(value, own.parameters.get(key))
        },
        system=changes.system or base.system,
        template="" if template == own.template else template,
        license="" if license_text == own.license else license_text,
        messages=tuple(ChatMessage(role, content) for role, content in changes.messages) or base.messages,
        modified_at=now,
        parent=base.parent if base.name.key == name.key else base.name.display,
    )


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _named(store: ModelStore, base: ModelName, puller: Puller) -> Generator[Progress, None, Manifest]:
    try:
        store.hold_all(store.get(base))
    except ModelNotFound:
        yield from _pulled(puller(store, base))
        store.hold_all(store.get(base))
    return store.get(base)


def _pulled(steps: Generator[Progress, None, None]) -> Iterator[Progress]:
    """Yield all steps except the last, because clients take "success" for the end of the creation."""
    try:
        for step in steps:
            if step.status != "success":
                yield step
    finally:
        steps.close()


def _check_precision(store: ModelStore, base: Manifest) -> None:
    """Raise RequestError if the weights of a GGUF file were converted with another precision than asked for."""
    if not has_precision(store, base):
        raise RequestError(
            f"'{base.name.display}' is stored with precision {gguf_precision(base.snapshot)}, not {store.precision}; "
            f"pull it with precision {store.precision} first"
        )


def _check_level(base: Manifest, level: str) -> None:
    """Raise RequestError unless the weights have the requested quantization."""
    present = describe(base).quantization_level
    if level and level.lower() != present.lower():
        raise RequestError(
            f"quantize is not supported: the weights are {present}, not {level.upper()}; "
            "use a model that is already quantized"
        )
