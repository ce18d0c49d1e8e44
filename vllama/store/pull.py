"""Pulls: resolve a name to its source and bring the files into the store.

Steps are yielded as records in the form of `/api/pull` (contract §1.7).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from vllama.errors import CloudDisabled, SourceUnavailable
from vllama.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName
from vllama.store.catalogue import Catalogue, WheelEntry, catalogue
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.remote_code import TRUST
from vllama.store.sources.hub import MAIN, HubSource
from vllama.store.sources.local import LocalSource
from vllama.store.sources.package_index import PackageIndexSource

HUB_HOSTS = frozenset({"hf.co", "huggingface.co", "www.huggingface.co"})
"""Hosts in names that mean a repository on the Hub, regardless of HF_ENDPOINT."""


def pull(
    store: ModelStore,
    name: ModelName,
    *,
    from_path: Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
) -> Generator[Progress, None, None]:
    """Pull the model and store it under this name; the last step is "success".

    With `from_path` the name means that Hugging Face snapshot directory, served in place, or that GGUF file. A
    name that is stored, complete and up to date is not transferred again, unless `force`. `trust_remote_code` stores
    the model's own code too, and lets its worker run it. Two processes that pull one name take turns.
    Raises SourceUnavailable if the name cannot be pulled, StoreError if the files are unusable. Closing the generator
    cancels the pull; a stored name stays unchanged.
    """
    yield Progress("pulling manifest")
    if name.is_cloud:
        raise CloudDisabled
    source = LocalSource(from_path) if from_path is not None else resolve(name, catalogue(store.root))
    if trust_remote_code:
        if isinstance(source, PackageIndexSource):
            raise SourceUnavailable(f"'{name.display}' has no code of its own; omit {TRUST}")
        source = replace(source, trusted=True)
    with store.session() as session:
        yield from source.pull(session, name, force=force)
    yield Progress("success")


def resolve(name: ModelName, known: Catalogue) -> PackageIndexSource | HubSource:
    """Return the source of a name (contract §3). Raises SourceUnavailable if there is none.

    `org/repo` and `hf.co/org/repo` are repositories on the Hub, their tag a revision or the quantization of a
    GGUF file; a name without an organisation is one of the catalogue.
    """
    entry = known.lookup(name)
    if isinstance(entry, WheelEntry):
        return PackageIndexSource(entry)
    if entry is not None:
        return HubSource(entry.repository, entry.revision or MAIN, entry.license, entry.gated)
    host, namespace = name.host.lower(), name.namespace.lower()
    if host in HUB_HOSTS or (host == DEFAULT_HOST and namespace != DEFAULT_NAMESPACE):
        return HubSource(f"{name.namespace}/{name.model}", MAIN if name.tag == DEFAULT_TAG else name.tag)
    raise _unknown(name, known)


def _unknown(name: ModelName, known: Catalogue) -> SourceUnavailable:
    """Return Ollama's error for an unknown name (contract §1.7), with advice."""
    if name.host.lower() != DEFAULT_HOST:
        hint = f"{name.host} is not a supported registry; supported: {', '.join(sorted(HUB_HOSTS))}."
    elif meant := known.closest(name):
        hint = f"did you mean {' or '.join(meant)}?"
    else:
        hint = "to pull a repository of the Hugging Face Hub, use org/repo."
    return SourceUnavailable(
        f"pull model manifest: file does not exist: no known source for '{name.display}'; {hint} "
        f"To use a local snapshot: vllama pull {name.display} --from DIRECTORY"
    )
