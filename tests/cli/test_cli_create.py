"""`vllama create`, `cp` and `rm` on a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_adapter import write_adapter
from tiny_snapshot import make_manifest, write_snapshot

from vllama.names import ModelName
from vllama.store.description import describe
from vllama.store.listing import show_reply
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore

from .conftest import Vllama
from .scripted_server import UNLOADED, ScriptedServer, body

MODELFILE = """
FROM smollm2:135m
PARAMETER temperature 0
PARAMETER mirostat 1
SYSTEM You are Mario.
"""


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelStore:
    """The store at OLLAMA_MODELS; smollm2:135m is in it. The working directory is an empty one."""
    store = ModelStore(tmp_path / "models")
    store.put(make_manifest(snapshot=write_snapshot(tmp_path / "snapshot")))
    monkeypatch.setenv("OLLAMA_MODELS", str(store.root))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return store


def find(store: ModelStore, name: str) -> Manifest:
    return store.get(ModelName.parse(name))


def names(store: ModelStore) -> set[str]:
    return {manifest.name.display for manifest in store.list()}


def test_create_makes_a_model_of_the_modelfile_here_and_needs_no_server(
    vllama: Vllama, store: ModelStore, no_server: str
) -> None:
    Path("Modelfile").write_text(MODELFILE)
    result = vllama("create", "mario")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("warning: parameter mirostat is deprecated\nusing existing layer sha256:")
    assert result.stderr.endswith("writing manifest\nsuccess\n")
    made = find(store, "mario")
    assert (made.parameters, made.system) == ({"temperature": 0}, "You are Mario.")


def test_create_reads_standard_input(vllama: Vllama, store: ModelStore) -> None:
    assert vllama("create", "mario", "-f", "-", stdin=MODELFILE).exit_code == 0
    assert find(store, "mario").system == "You are Mario."


def test_create_prints_its_steps_as_json(vllama: Vllama) -> None:
    result = vllama("create", "mario", "--file", "-", "--json", stdin=MODELFILE)
    assert [json.loads(line) for line in result.stdout.splitlines()][-2:] == [
        {"status": "writing manifest"},
        {"status": "success"},
    ]


def test_a_path_is_relative_to_the_modelfile(vllama: Vllama, store: ModelStore, tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere"
    write_snapshot(mine / "weights")
    (mine / "My.modelfile").write_text("FROM ./weights\nSYSTEM x")
    assert vllama("create", "mine", "-f", str(mine / "My.modelfile")).exit_code == 0
    assert find(store, "mine").snapshot == mine / "weights"


def test_a_second_from_must_be_the_path_of_a_file(vllama: Vllama, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for said in (f"FROM smollm2:135m\nFROM {tmp_path}/model.gguf", f"FROM {tmp_path}/model.gguf\nFROM smollm2:135m"):
        result = vllama("create", "mine", "-f", "-", stdin=said)
        assert result.exit_code == 2
        assert "a second FROM needs the paths of two GGUF files" in result.stderr


def test_an_adapter_s_path_is_relative_to_the_modelfile(vllama: Vllama, store: ModelStore, tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere"
    write_adapter(mine / "lora", {"lm_head": (32, 8)}, rank=2)
    (mine / "Modelfile").write_text("FROM smollm2:135m\nADAPTER lora")
    assert vllama("create", "tuned", "-f", str(mine / "Modelfile")).exit_code == 0
    assert find(store, "tuned").adapter_rank == 2
    (mine / "Modelfile").write_text("FROM smollm2:135m\nADAPTER ./nowhere")
    result = vllama("create", "tuned", "-f", str(mine / "Modelfile"))
    assert result.exit_code == 2
    assert "ADAPTER ./nowhere: no such file or directory" in result.stderr


def test_the_modelfile_of_a_model_with_an_adapter_makes_the_same_model_again(
    vllama: Vllama, store: ModelStore, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "lora", {"lm_head": (32, 8)}, rank=2)
    vllama("create", "tuned", "-f", "-", stdin=f"FROM smollm2:135m\nADAPTER {tmp_path / 'lora'}")
    tuned = find(store, "tuned")
    shown = show_reply(tuned, describe(tuned), verbose=False)["modelfile"]
    assert vllama("create", "again", "-f", "-", stdin=shown).exit_code == 0
    assert find(store, "again").digest == tuned.digest


def test_a_directory_here_comes_before_a_model_of_that_name(vllama: Vllama, store: ModelStore) -> None:
    write_snapshot(Path("smollm2"))
    assert vllama("create", "mine", "-f", "-", stdin="FROM smollm2").exit_code == 0
    assert find(store, "mine").snapshot == Path("smollm2").resolve()


def test_the_modelfile_that_show_prints_makes_the_same_model(vllama: Vllama, store: ModelStore) -> None:
    vllama("create", "mario", "-f", "-", stdin=MODELFILE)
    mario = find(store, "mario")
    shown = show_reply(mario, describe(mario), verbose=False)["modelfile"]
    assert vllama("create", "luigi", "-f", "-", stdin=shown).exit_code == 0
    assert find(store, "luigi").digest == mario.digest


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (["mario"], None, 2, "File 'Modelfile' does not exist"),
        (["a//b", "-f", "-"], "FROM smollm2:135m", 2, "Error: invalid model name"),
        (["mario", "-f", "-"], "FROM smollm2:135m\nBAD x", 2, "Error: (line 2): command must be one of "),
        (["mario", "-f", "-"], "SYSTEM x", 2, "Error: no FROM line"),
        (["mario", "-f", "-"], "FROM ./nope", 2, "Error: FROM ./nope: no such file or directory: nope"),
        (["mario", "-f", "-"], "FROM nope.gguf", 2, "no such file or directory"),
        (["mario", "-f", "-"], "FROM nope", 1, "no known source for 'nope:latest'"),
        (["mario", "-f", "-", "-q", "q4_0"], "FROM smollm2:135m", 2, "Error: quantize is not supported"),
    ],
)
def test_what_cannot_be_made_is_told_and_changes_nothing(
    vllama: Vllama, store: ModelStore, arguments: list[str], stdin: str | None, code: int, message: str
) -> None:
    result = vllama("create", *arguments, stdin=stdin)
    assert result.exit_code == code
    assert message in result.stderr
    assert names(store) == {"smollm2:135m"}


def test_cp_gives_another_name_to_the_same_files(vllama: Vllama, store: ModelStore, no_server: str) -> None:
    result = vllama("cp", "smollm2:135m", "gpt-4")
    assert (result.exit_code, result.stdout) == (0, "copied 'smollm2:135m' to 'gpt-4'\n")
    assert find(store, "gpt-4").digest == find(store, "smollm2:135m").digest


def test_rm_removes_several_models_and_needs_no_server(vllama: Vllama, store: ModelStore, no_server: str) -> None:
    vllama("cp", "smollm2:135m", "a")
    vllama("cp", "smollm2:135m", "b")
    result = vllama("rm", "a", "B")
    assert (result.exit_code, result.stdout) == (0, "deleted 'a'\ndeleted 'B'\n")
    assert names(store) == {"smollm2:135m"}


def test_rm_asks_a_server_that_runs_to_unload_first(vllama: Vllama, store: ModelStore, server: ScriptedServer) -> None:
    stored_when_asked = []
    reply = body(UNLOADED)
    server.on("POST", "/api/generate", type(reply)((lambda _: stored_when_asked.append(names(store)), *reply.pieces)))
    assert vllama("rm", "smollm2:135m").exit_code == 0
    assert server.bodies("/api/generate") == [{"model": "smollm2:135m", "keep_alive": 0}]
    assert stored_when_asked == [{"smollm2:135m"}]
    assert names(store) == set()


@pytest.mark.parametrize("arguments", [["cp", "nope", "x"], ["rm", "nope", "smollm2:135m"]])
def test_a_model_that_is_not_there_is_told_with_the_store(
    vllama: Vllama, store: ModelStore, no_server: str, arguments: list[str]
) -> None:
    result = vllama(*arguments)
    assert result.exit_code == 1
    assert result.stderr == f"Error: model 'nope:latest' not found in {store.root} (OLLAMA_MODELS)\n"
    assert names(store) == {"smollm2:135m"}


@pytest.mark.parametrize("arguments", [["cp", "a"], ["cp", "a", "b//c"], ["rm"], ["rm", "a//b"]])
def test_wrong_usage_of_cp_and_rm_ends_with_2(vllama: Vllama, store: ModelStore, arguments: list[str]) -> None:
    assert vllama(*arguments).exit_code == 2
    assert names(store) == {"smollm2:135m"}
