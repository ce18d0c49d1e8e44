"""Pulls from a stand-in for the Hub, through its HTTP API and in the process that really talks to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hub_stand_in import Fault, HubStandIn, Repository, hub_stand_in, sha256
from ollama_layout import converts_to, gguf_bytes

from vllama.errors import ManifestCorrupt, SourceUnavailable, StoreError
from vllama.installed.loading import Loading
from vllama.names import ModelName
from vllama.store import loadable
from vllama.store.description import describe, gguf_precision
from vllama.store.gguf import conversion
from vllama.store.manifest import Source
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.pull import pull
from vllama.store.sources.hub import HubSource
from vllama.store.sources.hub_errors import Asked
from vllama.store.sources.hub_listing import RemoteFile
from vllama.store.sources.hub_transfer import Patience, Transfer

from .conftest import BuildSnapshot

REPOSITORY = "Acme/Tiny-7B.v1"
NAME = ModelName.parse("hf.co/Acme/Tiny-7B.v1")
COMMIT = "a" * 40
QUICK = Patience(attempts=3, seconds=0.01)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Make the stand-in the only Hub there is."""
    for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_stand_in() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def files(build_snapshot: BuildSnapshot) -> dict[str, bytes]:
    """Offer a model with three megabytes of weights, and what other repositories have besides."""
    directory = build_snapshot("remote", tensors={"model.embed_tokens.weight": ("BF16", [1500, 1000])})
    found = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    others = (".gitattributes", "README.md", "pytorch_model.bin", "modeling_tiny.py", "onnx/config.json")
    return found | dict.fromkeys(others, b"not for a worker")


@pytest.fixture
def repository(hub: HubStandIn, files: dict[str, bytes]) -> Repository:
    hub.repositories[REPOSITORY] = Repository(files)
    return hub.repositories[REPOSITORY]


def _pull(store: ModelStore, revision: str = "main", *, force: bool = False) -> list[Progress]:
    return list(HubSource(REPOSITORY, revision, patience=QUICK).pull(store, NAME, force=force))


def _staged(store: ModelStore) -> list[str]:
    return sorted(path.name for path in (store.root / "staging").glob("*@*"))


class TestAPull:
    def test_it_brings_what_a_worker_reads_and_nothing_else(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes]
    ) -> None:
        list(pull(store, NAME))
        manifest = store.get(NAME)
        wanted = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
        wanted |= {"chat_template.jinja", "model.safetensors"}
        assert {file.path for file in manifest.files} == wanted
        on_disk = {str(path.relative_to(manifest.snapshot)) for path in manifest.snapshot.rglob("*")}
        assert on_disk == wanted
        for file in manifest.files:
            assert (file.size, file.sha256) == (len(files[file.path]), sha256(files[file.path]))
            assert (manifest.snapshot / file.path).read_bytes() == files[file.path]
        assert _staged(store) == []

    def test_the_revision_is_resolved_to_a_commit_and_pinned(self, store: ModelStore, repository: Repository) -> None:
        _pull(store)
        assert store.get(NAME).source == Source("hub", REPOSITORY, COMMIT)

    def test_each_large_file_has_a_bar_with_its_checksum_from_the_start(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes]
    ) -> None:
        steps = _pull(store)
        digest = sha256(files["model.safetensors"])
        bars = [step for step in steps if step.digest == f"sha256:{digest}"]
        assert {(bar.status, bar.total) for bar in bars} == {
            (f"pulling {digest[:12]}", len(files["model.safetensors"]))
        }
        completed = [bar.completed for bar in bars]
        assert completed == sorted(completed)
        assert completed[-1] == bars[-1].total
        whole = {(step.digest, step.completed) for step in steps if step.digest and step.total == step.completed}
        assert whole == {(f"sha256:{file.sha256}", file.size) for file in store.get(NAME).files}

    def test_its_steps_are_ollamas(self, store: ModelStore, repository: Repository) -> None:
        statuses = [step.status for step in pull(store, NAME) if not step.digest]
        assert statuses == ["pulling manifest", "verifying sha256 digest", "writing manifest", "success"]

    def test_a_second_one_costs_no_transfer(self, store: ModelStore, repository: Repository, hub: HubStandIn) -> None:
        _pull(store)
        before, requests = store.get(NAME), hub.bytes_requests()
        steps = _pull(store)
        assert {step.digest for step in steps} == {f"sha256:{file.sha256}" for file in before.files}
        assert (store.get(NAME), hub.bytes_requests()) == (before, requests)

    def test_a_pinned_one_that_is_here_asks_nobody(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        _pull(store, COMMIT)
        hub.requests.clear()
        _pull(store, COMMIT)
        assert hub.requests == []

    def test_force_fetches_all_of_it_again(self, store: ModelStore, repository: Repository, hub: HubStandIn) -> None:
        _pull(store)
        requests = hub.bytes_requests()
        _pull(store, force=True)
        assert hub.bytes_requests() == 2 * requests

    def test_a_new_commit_is_taken_over(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes]
    ) -> None:
        _pull(store)
        repository.commit, repository.files = "b" * 40, files | {"LICENSE": b"MIT"}
        _pull(store)
        assert store.get(NAME).source.revision == "b" * 40
        assert describe(store.get(NAME)).license == "MIT"

    def test_a_new_commit_with_the_same_weights_costs_no_transfer_of_them(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn
    ) -> None:
        _pull(store)
        hub.requests.clear()
        repository.commit, repository.files = "b" * 40, files | {"LICENSE": b"MIT"}
        before = store.get(NAME).snapshot
        _pull(store)
        assert hub.ranges("LICENSE")
        assert hub.ranges("model.safetensors") == []
        weights = [directory / "model.safetensors" for directory in (before, store.get(NAME).snapshot)]
        assert weights[0] != weights[1]
        assert weights[0].samefile(weights[1])

    def test_another_name_for_the_same_costs_no_transfer_of_the_weights(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        _pull(store)
        hub.requests.clear()
        other = ModelName.parse("tiny:7b")
        list(HubSource(REPOSITORY, patience=QUICK).pull(store, other, force=False))
        assert hub.ranges("model.safetensors") == []
        assert store.get(other).snapshot == store.get(NAME).snapshot
        assert (store.get(other).asked, store.get(NAME).asked) == ("tiny:7b", "hf.co/Acme/Tiny-7B.v1:latest")

    def test_a_stored_file_that_was_damaged_is_fetched(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn
    ) -> None:
        _pull(store)
        path = store.get(NAME).snapshot / "model.safetensors"
        path.write_bytes(b"X" * path.stat().st_size)
        other = ModelName.parse("tiny:7b")
        list(HubSource(REPOSITORY, patience=QUICK).pull(store, other, force=False))
        assert path.read_bytes() == files["model.safetensors"]

    def test_a_licence_that_only_the_card_states_is_kept(self, store: ModelStore, repository: Repository) -> None:
        repository.tags = ("text-generation", "license:apache-2.0")
        _pull(store)
        assert store.get(NAME).license == "apache-2.0"

    def test_one_file_under_two_names_is_fetched_once(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn
    ) -> None:
        repository.files = files | {"copy.safetensors": files["model.safetensors"]}
        _pull(store)
        assert {"copy.safetensors", "model.safetensors"} <= {file.path for file in store.get(NAME).files}
        assert len(hub.ranges("model.safetensors") + hub.ranges("copy.safetensors")) == 2  # before and after a redirect

    def test_a_mirror_that_tells_no_sizes_is_asked_for_each_file(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes]
    ) -> None:
        repository.tells_sizes = False
        _pull(store)
        assert {file.sha256 for file in store.get(NAME).files if file.path == "model.safetensors"} == {
            sha256(files["model.safetensors"])
        }

    def test_a_mirror_that_states_no_size_at_all_serves_the_model(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn
    ) -> None:
        repository.tells_sizes, repository.is_sizeless = False, True
        hub.misbehave("model.safetensors", Fault(after=1_000_000))
        steps = _pull(store)
        manifest = store.get(NAME)
        for file in manifest.files:
            assert (file.size, file.sha256) == (len(files[file.path]), sha256(files[file.path]))
            assert (manifest.snapshot / file.path).read_bytes() == files[file.path]
        weights = [step for step in steps if step.digest == f"sha256:{sha256(files['model.safetensors'])}"]
        assert {step.total for step in weights[:-1]} <= {None}
        assert weights[-1].total == len(files["model.safetensors"])

    def test_a_stored_file_keeps_its_bytes_when_a_mirror_states_no_size(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn
    ) -> None:
        _pull(store)
        weights = store.get(NAME).snapshot / "model.safetensors"
        hub.requests.clear()
        repository.tells_sizes, repository.is_sizeless = False, True
        other = ModelName.parse("tiny:7b")
        list(HubSource(REPOSITORY, patience=QUICK).pull(store, other, force=False))
        assert weights.read_bytes() == files["model.safetensors"]
        assert store.get(other).damaged_files() == []
        assert hub.ranges("model.safetensors") == []

    def test_a_damaged_stored_file_is_replaced_and_never_written_to(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        _pull(store)
        path = store.get(NAME).snapshot / "model.safetensors"
        damaged = b"X" * path.stat().st_size
        path.write_bytes(damaged)
        (tmp_path / "kept").hardlink_to(path)
        other = ModelName.parse("tiny:7b")
        list(HubSource(REPOSITORY, patience=QUICK).pull(store, other, force=False))
        assert path.read_bytes() == files["model.safetensors"]
        assert (tmp_path / "kept").read_bytes() == damaged

    def test_a_linked_part_that_an_older_version_left_is_never_written_to(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn, tmp_path: Path
    ) -> None:
        hub.misbehave("model.safetensors", Fault(403))
        with pytest.raises(SourceUnavailable):
            _pull(store)
        (staging,) = (store.root / "staging").glob("*@resume")
        part = staging / "files" / f"{sha256(files['model.safetensors'])}.part"
        part.unlink(missing_ok=True)
        others = tmp_path / "others"
        others.write_bytes(b"another file")
        part.hardlink_to(others)
        _pull(store)
        assert others.read_bytes() == b"another file"
        assert (store.get(NAME).snapshot / "model.safetensors").read_bytes() == files["model.safetensors"]

    def test_a_file_without_checksum_is_not_taken_from_another_commit(
        self, store: ModelStore, hub: HubStandIn, tmp_path: Path
    ) -> None:
        place = tmp_path / "place"
        place.write_bytes(b"old")
        with httpx.Client() as client:
            content = b"new"
            hub.repositories[REPOSITORY] = Repository({"notes.txt": content})
            asked = Asked(hub.url, REPOSITORY, COMMIT, has_token=False)
            url = f"{hub.url}/{REPOSITORY}/resolve/{COMMIT}/notes.txt"
            transfer = Transfer(client, asked, {}, QUICK)
            transfer.fetch(RemoteFile("notes.txt", len(content)), url, place, lambda _: None)
        assert place.read_bytes() == content

    def test_nothing_but_a_name_a_version_and_the_token_is_told(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        _pull(store)
        assert {request.authorization for request in hub.requests} == {""}
        agents = {request.user_agent for request in hub.requests}
        assert all(agent.startswith("vllama/") and "torch" not in agent for agent in agents)

    def test_what_hugging_faces_own_cache_has_is_not_fetched(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn, tmp_path: Path
    ) -> None:
        cache = tmp_path / "huggingface" / "hub" / "models--Acme--Tiny-7B.v1"
        blob = cache / "blobs" / sha256(files["model.safetensors"])
        blob.parent.mkdir(parents=True)
        blob.write_bytes(files["model.safetensors"])
        snapshot = cache / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to(blob)
        _pull(store)
        assert hub.ranges("model.safetensors") == []
        assert store.get(NAME).damaged_files() == []

    def test_a_damaged_file_of_that_cache_is_fetched(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        snapshot = tmp_path / "huggingface" / "hub" / "models--Acme--Tiny-7B.v1" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        damaged = b"X" * len(files["model.safetensors"])
        (snapshot / "model.safetensors").write_bytes(damaged)
        _pull(store)
        assert (store.get(NAME).snapshot / "model.safetensors").read_bytes() == files["model.safetensors"]
        assert (snapshot / "model.safetensors").read_bytes() == damaged


class TestNetworksFail:
    def test_a_body_that_ends_early_is_gone_on_with(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        hub.misbehave("model.safetensors", Fault(after=1_000_000), Fault(after=500_000))
        _pull(store)
        assert store.get(NAME).damaged_files() == []
        starts = [int(asked.split("=")[1].split("-")[0]) for asked in hub.ranges("model.safetensors")]
        assert len(set(starts)) == 3
        assert max(starts) <= 1_500_000

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_an_answer_that_may_get_better_is_asked_for_again(
        self, store: ModelStore, repository: Repository, hub: HubStandIn, status: int
    ) -> None:
        hub.api_faults.append(Fault(status))
        hub.misbehave("model.safetensors", Fault(status), Fault(status))
        _pull(store)
        assert store.get(NAME).damaged_files() == []

    def test_a_connection_that_drops_while_metadata_is_read_is_tried_again(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        repository.tells_sizes = False
        hub.head_faults.extend([Fault(drops=True), Fault(503), Fault(drops=True)])
        hub.api_faults.append(Fault(drops=True))
        _pull(store)
        assert store.get(NAME).damaged_files() == []

    def test_connections_that_keep_dropping_while_metadata_is_read_are_told(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        repository.tells_sizes = False
        hub.head_faults.extend([Fault(drops=True)] * 10)
        with pytest.raises(SourceUnavailable, match=f"^cannot reach {hub.url}: .*check the network"):
            _pull(store)

    def test_metadata_that_is_refused_says_why(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        repository.tells_sizes = False
        hub.head_faults.append(Fault(403))
        with pytest.raises(SourceUnavailable, match=f"^{hub.url} denied access to '{REPOSITORY}'"):
            _pull(store)

    def test_redirects_that_never_end_are_told_while_metadata_is_read(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        repository.tells_sizes = False
        loop = f"/{REPOSITORY}/resolve/{COMMIT}/config.json"
        hub.head_faults.extend([Fault(302, {"Location": loop})] * 100)
        with pytest.raises(SourceUnavailable, match=r"(?i)redirect"):
            _pull(store)

    def test_redirects_that_never_end_end_the_pull_without_waiting_for_other_files(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        held = threading.Event()
        hub.misbehave("model.safetensors", Fault(after=1_000_000, go_on=held))
        loop = f"{hub.url}/{REPOSITORY}/resolve/{COMMIT}/config.json"
        hub.misbehave("config.json", *[Fault(302, {"Location": loop})] * 100)
        with pytest.raises(SourceUnavailable, match=r"config\.json.*(?i:redirect)"):
            _pull(store)
        assert not held.is_set()

    def test_a_process_that_ended_is_no_fault_of_the_store(
        self, store: ModelStore, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = subprocess.Popen

        def ended(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            process = started([sys.executable, "-c", "import sys; sys.exit('no such module')"], **options)
            process.wait()
            return process

        monkeypatch.setattr(subprocess, "Popen", ended)
        with pytest.raises(SourceUnavailable, match=r"exited with status 1:\nno such module"):
            _pull(store)

    def test_patience_ends(self, store: ModelStore, repository: Repository, hub: HubStandIn) -> None:
        hub.misbehave("model.safetensors", *[Fault(503)] * 10)
        with pytest.raises(SourceUnavailable, match=rf"answered 503 for '{REPOSITORY}'; try again later"):
            _pull(store)
        assert store.list() == []

    def test_a_limit_that_lasts_long_is_told_and_not_waited_for(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        hub.api_faults.append(Fault(429, {"Retry-After": "3600"}))
        with pytest.raises(SourceUnavailable, match=r"\(429\): try again in 3600 s, or set HF_TOKEN"):
            _pull(store)

    def test_a_server_without_ranges_is_read_from_the_beginning(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        hub.misbehave("model.safetensors", Fault(after=1_000_000), Fault(ignores_ranges=True))
        _pull(store)
        assert store.get(NAME).damaged_files() == []

    def test_nobody_there(self, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(SourceUnavailable, match=r"cannot reach http://127\.0\.0\.1:9: .*HF_ENDPOINT to a mirror"):
            _pull(store)

    def test_a_host_name_that_does_not_resolve_is_told(
        self, store: ModelStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The name is one that never resolves (RFC 2606)."""
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
        told = r"cannot reach http://hub\.invalid: its host name, or that of the proxy, does not resolve"
        with pytest.raises(SourceUnavailable, match=told):
            _pull(store)

    @pytest.mark.parametrize(
        ("error", "failing_for", "is_over"),
        [
            (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), 0.5, False),
            (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), 1.5, True),
            (ConnectionResetError(), 30.0, False),
        ],
    )
    def test_patience_is_short_where_a_host_name_does_not_resolve_and_only_there(
        self, error: Exception, failing_for: float, *, is_over: bool
    ) -> None:
        failure = SourceUnavailable("cannot reach the Hub")
        failure.__cause__ = httpx.ConnectError("failed")
        failure.__cause__.__cause__ = error
        assert Patience().is_over(3, 2.0, failure, failing_for) is is_over

    def test_offline_is_respected(
        self, store: ModelStore, repository: Repository, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(SourceUnavailable, match="HF_HUB_OFFLINE is set"):
            _pull(store)
        assert hub.requests == []


class TestDamage:
    def test_another_file_than_listed_is_refused_and_leaves_nothing(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        hub.misbehave("model.safetensors", Fault(flips=True))
        with pytest.raises(SourceUnavailable, match=r"digest mismatch: model\.safetensors .*serves a different file"):
            _pull(store)
        assert store.list() == []
        assert not list(store.root.rglob(f"{sha256(repository.files['model.safetensors'])}*"))

    def test_a_small_file_is_checked_as_well(self, store: ModelStore, repository: Repository, hub: HubStandIn) -> None:
        hub.misbehave("tokenizer.json", Fault(flips=True))
        with pytest.raises(SourceUnavailable, match=r"digest mismatch: tokenizer\.json"):
            _pull(store)

    def test_a_damaged_rest_of_an_earlier_pull_is_fetched_anew(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        hub.misbehave("model.safetensors", Fault(after=1_000_000), *[Fault(403)] * 3)
        with pytest.raises(SourceUnavailable):
            _pull(store)
        hub.faults.clear()
        (part,) = store.root.rglob(f"{sha256(repository.files['model.safetensors'])}.part")
        part.write_bytes(b"X" * part.stat().st_size)
        _pull(store)
        assert store.get(NAME).damaged_files() == []
        assert hub.ranges("model.safetensors")[-1].startswith("bytes=0-")

    def test_weights_that_are_no_safetensors_are_refused(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes]
    ) -> None:
        repository.files = files | {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}
        with pytest.raises(ManifestCorrupt, match="not a safetensors file"):
            _pull(store)
        assert store.list() == []

    def test_a_snapshot_that_is_not_whole_is_refused(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes]
    ) -> None:
        index = {"weight_map": {"x": "model-00002-of-00002.safetensors"}}
        repository.files = files | {"model.safetensors.index.json": json.dumps(index).encode()}
        with pytest.raises(StoreError, match=r"the repository is incomplete: .*model-00002-of-00002"):
            _pull(store)


class TestWhatIsRefused:
    def test_a_repository_that_is_not_there(self, store: ModelStore) -> None:
        with pytest.raises(SourceUnavailable, match=rf"^pull model manifest: file does not exist: .*'{REPOSITORY}'"):
            _pull(store)

    def test_a_private_one_names_the_token(self, store: ModelStore, repository: Repository) -> None:
        repository.private = True
        with pytest.raises(SourceUnavailable, match="if it is private, set HF_TOKEN to a token with read access"):
            _pull(store)

    def test_a_private_one_is_read_with_its_token_which_is_told_to_nobody_else(
        self, store: ModelStore, repository: Repository, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository.private, repository.token = True, "hf_secret"
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        _pull(store)
        assert store.get(NAME).damaged_files() == []
        assert {request.authorization for request in hub.requests if "/api/" in request.path} == {"Bearer hf_secret"}

    def test_a_revision_that_is_not_there(self, store: ModelStore, repository: Repository) -> None:
        with pytest.raises(SourceUnavailable, match=rf"'{REPOSITORY}' has no revision 'v9'"):
            _pull(store, "v9")

    def test_a_tag_is_a_revision(self, store: ModelStore, repository: Repository) -> None:
        repository.revisions = frozenset({"v9"})
        list(pull(store, ModelName.parse(f"{REPOSITORY}:v9")))
        assert store.get(ModelName.parse(f"{REPOSITORY}:v9")).source.revision == COMMIT

    def test_a_gated_one_says_what_to_do(self, store: ModelStore, repository: Repository, hub: HubStandIn) -> None:
        repository.gated = True
        page = f"{hub.url}/{REPOSITORY}"
        with pytest.raises(
            SourceUnavailable, match=f"is gated: accept its licence at {page}, create a token.*HF_TOKEN"
        ):
            _pull(store)

    def test_a_mirror_that_does_not_say_gated_is_understood_where_the_catalogue_knows(
        self, store: ModelStore, repository: Repository, hub: HubStandIn
    ) -> None:
        hub.misbehave("model.safetensors", Fault(401))
        source = HubSource(REPOSITORY, gated=True, patience=QUICK)
        with pytest.raises(SourceUnavailable, match="is gated: accept its licence at"):
            list(source.pull(store, NAME, force=False))

    def test_a_gated_one_that_the_account_may_not_read(
        self, store: ModelStore, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository.gated, repository.token = True, "hf_other"
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        with pytest.raises(SourceUnavailable, match="the account of HF_TOKEN has no access: request it at"):
            _pull(store)

    def test_a_gated_one_is_read_with_a_token(
        self, store: ModelStore, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository.gated, repository.token = True, "hf_mine"
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        _pull(store)
        assert store.get(NAME).damaged_files() == []

    def test_a_token_that_is_none(
        self, store: ModelStore, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(SourceUnavailable, match="rejected the token: set HF_TOKEN to a valid token"):
            _pull(store)

    def test_pickle(self, store: ModelStore, repository: Repository, files: dict[str, bytes]) -> None:
        repository.files = {path: content for path, content in files.items() if path != "model.safetensors"}
        with pytest.raises(
            SourceUnavailable, match=r"pickle format only \(pytorch_model\.bin\), which can execute any code"
        ):
            _pull(store)

    @pytest.fixture
    def ordered(self, repository: Repository, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Repository:
        """Make the weights GPTQ with activation ordering, and vLLM one that does not load that."""
        installed = Loading(version="0.40.1", quantizations=frozenset({"gptq"}), orders_gptq=False)
        monkeypatch.setattr(loadable, "installed_loading", lambda: installed)
        quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}
        config = json.loads(files["config.json"]) | {"quantization_config": quantization}
        repository.files = files | {"config.json": json.dumps(config).encode()}
        repository.tags = ("base_model:acme/Tiny-7B", "base_model:quantized:acme/Tiny-7B")
        return repository

    def test_what_the_installed_vllm_cannot_load_before_any_other_file_is_fetched(
        self, store: ModelStore, ordered: Repository, hub: HubStandIn
    ) -> None:
        told = rf"^vLLM 0\.40\.1 cannot load '{REPOSITORY}': .*\(desc_act\).*; use acme/Tiny-7B instead"
        with pytest.raises(SourceUnavailable, match=told):
            _pull(store)
        fetched = {request.path.rpartition("/")[2] for request in hub.requests if "/resolve/" in request.path}
        assert fetched == {"config.json"}
        assert store.list() == []

    def test_it_is_pulled_all_the_same_where_that_is_forced(self, store: ModelStore, ordered: Repository) -> None:
        _pull(store, force=True)
        assert store.get(NAME).damaged_files() == []

    def test_a_disk_that_has_no_room_is_found_out_before_the_first_byte(
        self, store: ModelStore, repository: Repository, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(store.root.parent)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2_000_000))
        with pytest.raises(StoreError, match=r"not enough disk space: 3\.0 MB to download, 2\.0 MB free in .*models"):
            _pull(store)
        assert hub.bytes_requests() == 0


def _command(store: ModelStore) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vllama", "pull", "--json", f"hf.co/{REPOSITORY}"],
        env=os.environ | {"OLLAMA_MODELS": str(store.root)},
        stdout=subprocess.PIPE,
        text=True,
    )


def _records_until(process: subprocess.Popen[str], digest: str, completed: int) -> None:
    assert process.stdout
    for line in process.stdout:
        record: dict[str, Any] = json.loads(line)
        if record.get("digest") == f"sha256:{digest}" and record.get("completed", 0) >= completed:
            return
    pytest.fail("the pull ended early")


class TestKills:
    def test_a_killed_pull_is_gone_on_with_where_it_was(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn
    ) -> None:
        held = threading.Event()
        hub.misbehave("model.safetensors", Fault(after=2_000_000, go_on=held))
        process = _command(store)
        _records_until(process, sha256(files["model.safetensors"]), 1_500_000)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        held.set()
        assert store.list() == []
        hub.requests.clear()
        _pull(store)
        starts = {int(asked.split("=")[1].split("-")[0]) for asked in hub.ranges("model.safetensors")}
        assert min(starts) >= 1_500_000
        assert store.get(NAME).damaged_files() == []
        assert _staged(store) == []

    def test_a_pull_that_nobody_waits_for_ends_and_keeps_what_it_has(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn
    ) -> None:
        held = threading.Event()
        hub.misbehave("model.safetensors", Fault(after=2_000_000, go_on=held))
        steps = HubSource(REPOSITORY, patience=QUICK).pull(store, NAME, force=False)
        while next(steps).completed < 1_500_000:
            pass
        steps.close()
        held.set()
        assert store.list() == []
        (part,) = store.root.rglob(f"{sha256(files['model.safetensors'])}.part")
        assert part.stat().st_size >= 1_500_000
        _pull(store)
        assert store.get(NAME).damaged_files() == []

    def test_two_pulls_at_once_share_one_transfer(
        self, store: ModelStore, repository: Repository, files: dict[str, bytes], hub: HubStandIn
    ) -> None:
        held = threading.Event()
        hub.misbehave("model.safetensors", Fault(after=2_000_000, go_on=held))
        first = _command(store)
        _records_until(first, sha256(files["model.safetensors"]), 1_500_000)
        second = HubSource(REPOSITORY, patience=QUICK).pull(ModelStore(store.root), NAME, force=False)
        assert next(second).status == "waiting for another import of the same files"
        held.set()
        steps = list(second)
        assert first.wait(60) == 0
        first.communicate()
        assert {step.digest for step in steps if step.digest} == {
            f"sha256:{file.sha256}" for file in store.get(NAME).files
        }
        assert len(hub.ranges("config.json")) == 1


class TestGguf:
    @pytest.fixture
    def ggufs(self, hub: HubStandIn, build_snapshot: BuildSnapshot, monkeypatch: pytest.MonkeyPatch) -> Repository:
        """Offer two quantizations; only their conversion is made up."""
        converted = build_snapshot("converted")

        def convert(source: Path, destination: Path, precision: str) -> Iterator[tuple[int, int]]:
            assert source.read_bytes().startswith(b"GGUF of")
            yield from converts_to(converted)(source, destination, precision)

        monkeypatch.setattr(conversion, "convert", convert)
        labels = ("Q4_K_M", "Q8_0")
        files = {f"tiny-7b-{label.lower()}.gguf": b"GGUF of " + label.encode() for label in labels}
        hub.repositories[REPOSITORY] = Repository(files | {"mmproj-f16.gguf": b"GGUF", "README.md": b""})
        return hub.repositories[REPOSITORY]

    @pytest.mark.parametrize(("tag", "file"), [("q8_0", "q8_0"), ("Q4_K_M", "q4_k_m"), ("latest", "q4_k_m")])
    def test_the_tag_names_the_quantization(self, store: ModelStore, ggufs: Repository, tag: str, file: str) -> None:
        name = ModelName.parse(f"hf.co/{REPOSITORY}:{tag}")
        steps = list(pull(store, name))
        assert store.get(name).source == Source("hub", f"{REPOSITORY}/tiny-7b-{file}.gguf+mmproj-f16.gguf", COMMIT)
        assert store.get(name).damaged_files() == []
        assert steps[-1].status == "success"
        assert "the model will take no images: cannot read the GGUF file" in " ".join(step.status for step in steps)
        assert [step.status for step in pull(store, name) if not step.digest] == ["pulling manifest", "success"]

    def test_it_is_converted_with_the_projector_beside_it(
        self, store: ModelStore, hub: HubStandIn, build_snapshot: BuildSnapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[bytes] = []

        def convert(source: Path, destination: Path, precision: str, *projector: Path) -> Iterator[tuple[int, int]]:
            given.extend(path.read_bytes() for path in (source, *projector))
            yield from converts_to(build_snapshot("converted"))(source, destination, precision)

        monkeypatch.setattr(conversion, "convert", convert)
        text, tower = gguf_bytes("gemma3"), gguf_bytes("clip", keys={"clip.projector_type": "gemma3"})
        hub.repositories[REPOSITORY] = Repository({"a.gguf": text, "mmproj-F32.gguf": b"", "mmproj-F16.gguf": tower})
        name = ModelName.parse(f"hf.co/{REPOSITORY}")
        list(pull(store, name))
        assert given == [text, tower]
        assert store.get(name).source == Source("hub", f"{REPOSITORY}/a.gguf+mmproj-F16.gguf", COMMIT)

    def test_it_is_converted_once_for_all_its_names(
        self, store: ModelStore, ggufs: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [ModelName.parse(f"hf.co/{REPOSITORY}{tag}") for tag in (":Q4_K_M", "")]
        list(pull(store, names[0]))
        monkeypatch.setattr(conversion, "convert", lambda *_: pytest.fail("it was converted again"))
        list(pull(store, names[1]))
        assert store.get(names[0]).digest == store.get(names[1]).digest

    def test_another_precision_is_converted_if_it_was_asked_for(self, store: ModelStore, ggufs: Repository) -> None:
        names = [ModelName.parse(f"hf.co/{REPOSITORY}{tag}") for tag in (":Q4_K_M", "")]
        list(pull(store, names[0]))
        for name in names:
            list(pull(store.converting("bf16"), name))
            assert gguf_precision(store.get(name).snapshot) == "bf16"

    def test_a_quantization_that_is_not_there_names_those_that_are(self, store: ModelStore, ggufs: Repository) -> None:
        with pytest.raises(SourceUnavailable, match=r"no GGUF file with Q6_K; use one of .*: Q4_K_M, Q8_0"):
            list(pull(store, ModelName.parse(f"hf.co/{REPOSITORY}:Q6_K")))

    def test_a_quantization_of_a_repository_without_gguf_is_explained(
        self, store: ModelStore, repository: Repository
    ) -> None:
        with pytest.raises(SourceUnavailable, match=r"has no GGUF file.* Q4_K_M"):
            list(pull(store, ModelName.parse(f"hf.co/{REPOSITORY}:Q4_K_M")))
