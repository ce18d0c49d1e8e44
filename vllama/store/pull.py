"""Make a name servable: find out what it stands for, and bring that here.

The steps come as records in the shape of `/api/pull` (contract §1.7).
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
"""Hosts of names that stand for a repository on the Hub, whatever HF_ENDPOINT says."""


def pull(
    store: ModelStore,
    name: ModelName,
    *,
    from_path: Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
) -> Generator[Progress, None, None]:
    """Bring the model here under this name; the last step is "success".

    With `from_path` the name stands for that directory, a Hugging Face snapshot, which is used
    where it is and not copied, or for that GGUF file. A name that is stored already, whole and up to date,
    costs no transfer; `force` does all the work again. `trust_remote_code` takes the code that the model brings
    along, and
    lets its worker run it. Two processes may pull one name: the second waits
    for the first. Raises SourceUnavailable where nothing can be pulled under the name, StoreError
    where the files cannot be used. Closing the generator ends the pull; a stored name stays as it was.
    """
    yield Progress("pulling manifest")
    if name.is_cloud:
        raise CloudDisabled
    source = LocalSource(from_path) if from_path is not None else resolve(name, catalogue(store.root))
    if trust_remote_code:
        if isinstance(source, PackageIndexSource):
            raise SourceUnavailable(f"'{name.display}' brings no code: leave out {TRUST}")
        source = replace(source, trusted=True)
    with store.session() as session:
        yield from source.pull(session, name, force=force)
    yield Progress("success")


def resolve(name: ModelName, known: Catalogue) -> PackageIndexSource | HubSource:
    """Return what a name stands for (contract §3). Raises SourceUnavailable where that is nothing.

    `org/repo` and `hf.co/org/repo` are repositories on the Hub, their tag a revision or the quantisation of a
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
    """Ollama's words for a name that its registry lacks (contract §1.7), and what to do about it."""
    if name.host.lower() != DEFAULT_HOST:
        hint = f"{name.host} is not a place to pull from; those are {', '.join(sorted(HUB_HOSTS))}."
    elif meant := known.closest(name):
        hint = f"did you mean {' or '.join(meant)}?"
    else:
        hint = "a repository on the Hugging Face Hub is pulled as org/repo."
    return SourceUnavailable(
        f"pull model manifest: file does not exist: nothing is known to pull as '{name.display}'; {hint} "
        f"A local snapshot works too: vllama pull {name.display} --from DIRECTORY"
    )
