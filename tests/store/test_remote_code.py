"""Code that a model brings: left out, unless a user trusts it in this one model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn, Repository, hub_stand_in

from vllama.errors import ManifestCorrupt, SourceUnavailable, StoreError
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.create import create
from vllama.store.load import load
from vllama.store.model_store import ModelStore
from vllama.store.provenance import provenance
from vllama.store.pull import pull
from vllama.store.remote_code import TRUST, advice, own_modules
from vllama.store.stage import stage
from vllama.store.verify import verify

from .conftest import BuildSnapshot

NAME = ModelName.parse("hf.co/acme/tiny")
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
CODE = {"configuration_own.py": "raise SystemExit('run')", "modeling_own.py": "from . import helper", "helper.py": ""}

BuildCode = Callable[..., Path]


@pytest.fixture
def with_code(build_snapshot: BuildSnapshot) -> BuildCode:
    """Return a function that writes a snapshot with code, of which `files` replace or remove some."""

    def build(name: str = "own", auto_map: object = AUTO_MAP, **files: str | None) -> Path:
        code: dict[str, Any] = CODE | {f"{module}.py": text for module, text in files.items()}
        return build_snapshot(name, config={"auto_map": auto_map}, files=code)

    return build


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_code: BuildCode) -> Iterator[HubStandIn]:
    """A Hub with one repository, whose model has code."""
    with hub_stand_in() as running:
        for name, value in running.variables(tmp_path / "huggingface").items():
            monkeypatch.setenv(name, value)
        running.repositories["acme/tiny"] = offer(with_code())
        yield running


def offer(directory: Path, **changes: Any) -> Repository:
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return Repository(files, **changes)


def pulled(store: ModelStore, *, trust: bool = False, **arguments: Any) -> str:
    """Pull, and return all statuses."""
    return "\n".join(step.status for step in pull(store, NAME, trust_remote_code=trust, **arguments))


def code_of(store: ModelStore, name: ModelName = NAME) -> set[str]:
    """The code that a model has: in its manifest, which is also all that lies in its snapshot."""
    manifest = store.get(name)
    listed = {file.path for file in manifest.files if file.path.endswith(".py")}
    if manifest.snapshot.is_relative_to(store.root):
        assert listed == {path.name for path in manifest.snapshot.rglob("*.py")}
    return listed


class TestFromTheHub:
    def test_it_is_left_out_and_the_pull_says_how_to_trust_it(self, store: ModelStore, hub: HubStandIn) -> None:
        said = pulled(store)
        assert "skipped the model's own code (configuration_own.py, modeling_own.py)" in said
        assert "vllama pull --trust-remote-code hf.co/acme/tiny" in said
        assert code_of(store) == set()
        assert store.get(NAME).engine_flags == ()
        assert not any(request.path.endswith(".py") for request in hub.requests)

    def test_trusted_it_comes_along_and_is_told(self, store: ModelStore, hub: HubStandIn) -> None:
        said = pulled(store, trust=True)
        assert "the model's worker will run its own code: configuration_own.py, helper.py, modeling_own.py" in said
        assert code_of(store) == set(CODE)
        manifest = store.get(NAME)
        assert manifest.engine_flags == (TRUST,)
        assert provenance(manifest, "BF16")["vllama.remote_code"].endswith(
            ": configuration_own.py, helper.py, modeling_own.py"
        )
        (manifest.snapshot / "helper.py").write_text("changed")
        verdicts: list[Any] = []

        def read() -> Iterator[object]:
            verdicts.extend((yield from verify(store, [NAME])))

        list(read())
        assert "helper.py" in verdicts[0].problems

    def test_trust_needs_no_second_word_for_the_same_commit(self, store: ModelStore, hub: HubStandIn) -> None:
        pulled(store, trust=True)
        pulled(store)
        assert code_of(store) == set(CODE)

    def test_trust_can_be_given_later(self, store: ModelStore, hub: HubStandIn) -> None:
        pulled(store)
        pulled(store, trust=True)
        assert code_of(store) == set(CODE)

    def test_a_new_commit_is_not_trusted_for_the_old_one_s_sake(
        self, store: ModelStore, hub: HubStandIn, with_code: BuildCode
    ) -> None:
        pulled(store, trust=True)
        hub.repositories["acme/tiny"] = offer(with_code("new", helper="import os"), commit="b" * 40)
        pulled(store)
        assert code_of(store) == set()
        assert store.get(NAME).engine_flags == ()

    def test_a_model_made_of_a_trusted_one_is_the_same_model(self, store: ModelStore, hub: HubStandIn) -> None:
        pulled(store, trust=True)
        list(create(store, ModelName.parse("mine"), Changes(system="Hi"), base=NAME.display))
        assert store.get(ModelName.parse("mine")).engine_flags == (TRUST,)

    def test_trust_in_nothing_is_refused(
        self, store: ModelStore, hub: HubStandIn, build_snapshot: BuildSnapshot
    ) -> None:
        hub.repositories["acme/tiny"] = offer(build_snapshot("plain"))
        with pytest.raises(SourceUnavailable, match=r"acme/tiny has no code .*omit --trust-remote-code"):
            pulled(store, trust=True)
        assert store.list() == []

    @pytest.mark.parametrize(
        ("auto_map", "lacking"),
        [
            ({"AutoConfig": "gone.OwnConfig"}, r"gone\.py is missing in it$"),
            (
                {"AutoConfig": "else/where--gone.OwnConfig"},
                r"else/where--gone\.py is missing in it .*another repository",
            ),
        ],
    )
    def test_code_that_is_not_in_the_repository_is_named(
        self, store: ModelStore, hub: HubStandIn, with_code: BuildCode, auto_map: object, lacking: str
    ) -> None:
        hub.repositories["acme/tiny"] = offer(with_code("other", auto_map=auto_map))
        with pytest.raises(SourceUnavailable, match=lacking):
            pulled(store, trust=True)
        assert store.list() == []


class TestFromADirectory:
    def test_it_is_no_part_of_the_model(self, store: ModelStore, with_code: BuildCode) -> None:
        said = pulled(store, from_path=with_code())
        assert "skipped the model's own code" in said
        assert code_of(store) == set()

    def test_trusted_it_is(self, store: ModelStore, with_code: BuildCode) -> None:
        directory = with_code()
        for trust in (False, True, False):
            pulled(store, from_path=directory, trust=trust)
        assert code_of(store) == set(CODE)
        assert store.get(NAME).engine_flags == (TRUST,)

    def test_code_that_changed_is_trusted_anew_or_not_at_all(self, store: ModelStore, with_code: BuildCode) -> None:
        directory = with_code()
        pulled(store, from_path=directory, trust=True)
        (directory / "helper.py").write_text("import os")
        pulled(store, from_path=directory)
        assert code_of(store) == set()
        assert store.get(NAME).engine_flags == ()

    def test_a_gguf_file_has_none(self, store: ModelStore, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        with pytest.raises(SourceUnavailable, match="a GGUF file has no code of its own"):
            pulled(store, from_path=tmp_path / "model.gguf", trust=True)


def test_a_model_in_a_wheel_has_none(store: ModelStore) -> None:
    with pytest.raises(SourceUnavailable, match=r"'smollm2:135m' has no code of its own"):
        list(pull(store, ModelName.parse("smollm2:135m"), trust_remote_code=True))


class TestInABundle:
    @pytest.fixture
    def bundle(self, store: ModelStore, with_code: BuildCode, tmp_path: Path) -> Path:
        pulled(store, from_path=with_code(), trust=True)
        list(stage(store, [NAME], tmp_path / "bundle"))
        return tmp_path / "bundle"

    def test_it_is_refused_unless_it_is_trusted_on_the_other_side_too(self, bundle: Path, tmp_path: Path) -> None:
        other = ModelStore(tmp_path / "other")
        with pytest.raises(StoreError, match=r"has its own code.*helper\.py.*load it with --trust-remote-code"):
            list(load(other, bundle))
        assert other.list() == []
        list(load(other, bundle, trust_remote_code=True))
        assert code_of(other) == set(CODE)
        assert other.get(NAME).engine_flags == (TRUST,)


class TestWhatToDoWhereAModelDoesNotLoad:
    def test_the_command_is_told(self, store: ModelStore, hub: HubStandIn) -> None:
        pulled(store)
        store.copy(NAME, ModelName.parse("mine"))
        told = advice(store.get(ModelName.parse("mine")))
        assert told.startswith(
            "the model has its own code (configuration_own.py, modeling_own.py); if you trust its source, run "
        )
        assert told.endswith("vllama pull --trust-remote-code hf.co/acme/tiny:latest")

    def test_of_a_directory_with_its_path(self, store: ModelStore, with_code: BuildCode) -> None:
        directory = with_code()
        pulled(store, from_path=directory)
        assert advice(store.get(NAME)).endswith(f" --from {directory}")

    def test_nothing_of_a_model_that_is_trusted_or_has_none(
        self, store: ModelStore, with_code: BuildCode, build_snapshot: BuildSnapshot
    ) -> None:
        for directory, trust in ((with_code(), True), (build_snapshot("plain"), False)):
            pulled(store, from_path=directory, trust=trust)
            assert advice(store.get(NAME)) == ""


@pytest.mark.parametrize(
    ("settings", "modules"),
    [
        ({"config.json": {"auto_map": {"AutoModel": "a.b.C"}}}, ["a.b.py"]),
        ({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["t.Slow", None]}}}, ["t.py"]),
        ({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["t.Slow", "u.Fast"]}}}, ["t.py", "u.py"]),
        ({"config.json": {"auto_map": ["x.Y"]}}, []),
        ({"config.json": {"auto_map": {"AutoModel": 7}}}, []),
    ],
)
def test_code_is_what_the_settings_name(tmp_path: Path, settings: dict[str, Any], modules: list[str]) -> None:
    for name, content in settings.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert own_modules(tmp_path) == modules


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ManifestCorrupt, match=r"^config\.json is not a JSON object"):
        own_modules(tmp_path)
