from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vllama.cli.list import models_table
from vllama.cli.ps import processor, residents_table
from vllama.cli.show import describe

from .conftest import Vllama
from .scripted_server import NO_MODELS, NOT_FOUND, PS, SHOW, TAGS, UNLOADED, ScriptedServer, body

LOADED_AT = datetime(2026, 11, 21, 9, 11, 10, tzinfo=UTC)


def record(**changes: Any) -> dict[str, Any]:
    resident: dict[str, Any] = json.loads(PS)["models"][0]
    return resident | changes


def test_list_prints_the_stored_models(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("GET", "/api/tags", body(TAGS))
    result = vllama("list")
    assert result.exit_code == 0
    header, row = result.stdout.splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert row.split()[:4] == ["smollm2:135m", "0504a3a26a1e", "98", "MB"]
    assert server.requests == [("GET", "/api/tags", None)]


def test_the_table_of_models_looks_like_ollamas() -> None:
    models = json.loads(TAGS)["models"]
    assert models_table(models, LOADED_AT + timedelta(hours=2)) == (
        "NAME            ID              SIZE     MODIFIED\nsmollm2:135m    0504a3a26a1e    98 MB    2 hours ago"
    )


def test_an_empty_store_is_listed_as_a_header(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("GET", "/api/tags", body(NO_MODELS))
    assert vllama("ls").stdout == "NAME    ID    SIZE    MODIFIED\n"


@pytest.mark.parametrize(("prefix", "count"), [("SMOL", 1), ("smollm2:135m", 1), ("llama", 0)])
def test_list_takes_the_beginning_of_a_name(vllama: Vllama, server: ScriptedServer, prefix: str, count: int) -> None:
    server.on("GET", "/api/tags", body(TAGS))
    assert len(json.loads(vllama("list", "--json", prefix).stdout)) == count


def test_list_as_json_is_what_the_server_said(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("GET", "/api/tags", body(TAGS))
    assert json.loads(vllama("list", "--json").stdout) == json.loads(TAGS)["models"]


def test_ps_prints_the_resident_models(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("GET", "/api/ps?all=true", body(PS))
    result = vllama("ps")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert server.requests == [("GET", "/api/ps?all=true", None)]


def test_ps_as_json_is_what_the_server_said(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("GET", "/api/ps?all=true", body(PS))
    assert json.loads(vllama("ps", "--json").stdout) == json.loads(PS)["models"]


def test_the_table_of_residents_looks_like_ollamas() -> None:
    assert residents_table([record()], LOADED_AT + timedelta(seconds=30)) == (
        "NAME            ID              SIZE      PROCESSOR    CONTEXT    UNTIL\n"
        "smollm2:135m    0504a3a26a1e    190 MB    100% CPU     4096       4 minutes from now"
    )


def test_a_model_that_loads_is_shown_with_its_phase_and_the_last_line_of_its_log() -> None:
    load = {"phase": "weights", "percent": 40, "line": "Loading safetensors checkpoint shards:  40% Completed"}
    models = [record(), record(name="qwen:7b", load=load), record(name="m", load={"phase": "waiting", "line": ""})]
    assert residents_table(models, LOADED_AT + timedelta(seconds=30)) == (
        "NAME            ID              SIZE      PROCESSOR    CONTEXT    UNTIL                 STATE\n"
        "smollm2:135m    0504a3a26a1e    190 MB    100% CPU     4096       4 minutes from now\n"
        "qwen:7b         0504a3a26a1e    190 MB    100% CPU     4096       Loading...            weights 40%\n"
        "m               0504a3a26a1e    190 MB    100% CPU     4096       Loading...            waiting\n"
        "\n"
        "qwen:7b: Loading safetensors checkpoint shards:  40% Completed"
    )


def test_where_the_server_tells_states_the_table_has_a_column_for_them() -> None:
    rows = [record(state="ready"), record(state="asleep")]
    assert residents_table(rows, LOADED_AT + timedelta(seconds=30)) == (
        "NAME            ID              SIZE      PROCESSOR    CONTEXT    UNTIL                 STATE\n"
        "smollm2:135m    0504a3a26a1e    190 MB    100% CPU     4096       4 minutes from now    ready\n"
        "smollm2:135m    0504a3a26a1e    190 MB    100% CPU     4096       4 minutes from now    asleep"
    )


@pytest.mark.parametrize(
    ("expires_at", "until"),
    [
        ("2318-09-02T09:11:10.613259382Z", "Forever"),
        ("2026-11-21T09:11:09Z", "Stopping..."),
        ("2026-11-21T10:41:10+01:00", "30 minutes from now"),
    ],
)
def test_until_tells_what_the_expiry_means(expires_at: str, until: str) -> None:
    row = residents_table([record(expires_at=expires_at)], LOADED_AT).splitlines()[1]
    assert row.endswith(f"  {until}")


@pytest.mark.parametrize(
    ("size", "size_vram", "text"),
    [
        (100, 0, "100% CPU"),
        (100, 100, "100% GPU"),
        (100, 75, "25%/75% CPU/GPU"),
        (100, 101, "Unknown"),
        (0, 0, "100% CPU"),
    ],
)
def test_the_processor_is_told_by_where_the_bytes_lie(size: int, size_vram: int, text: str) -> None:
    assert processor(size, size_vram) == text


def test_stop_unloads_with_a_keep_alive_of_zero(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", body(UNLOADED))
    result = vllama("stop", "smollm2:135m")
    assert (result.exit_code, result.output) == (0, "")
    assert server.requests == [("POST", "/api/generate", {"model": "smollm2:135m", "keep_alive": 0})]


def test_stop_of_an_unknown_model_says_so(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", body(NOT_FOUND, 404))
    result = vllama("stop", "nope")
    assert result.exit_code == 1
    assert result.stderr == 'Error: couldn\'t find model "nope" to stop; `vllama ps` lists the loaded models\n'


def test_another_error_of_stop_is_left_as_it_is(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", body(b'{"error":"invalid model name"}', 400))
    assert vllama("stop", "a//b").stderr == "Error: invalid model name\n"


def test_show_prints_ollamas_sections(vllama: Vllama, server: ScriptedServer) -> None:
    result = vllama("show", "smollm2:135m")
    assert result.exit_code == 0
    assert result.stdout == (
        "  Model\n"
        "    architecture        llama\n"
        "    parameters          134.52M\n"
        "    context length      8192\n"
        "    embedding length    576\n"
        "    quantization        Q4_1\n"
        "\n"
        "  Capabilities\n"
        "    completion\n"
        "\n"
        "  Parameters\n"
        '    stop    "<|im_start|>"\n'
        '    stop    "<|im_end|>"\n'
        "\n"
    )
    assert server.requests == [("POST", "/api/show", {"model": "smollm2:135m", "verbose": False})]


def test_show_verbose_asks_for_everything_and_adds_the_metadata(vllama: Vllama, server: ScriptedServer) -> None:
    text = vllama("show", "--verbose", "smollm2:135m").stdout
    assert server.bodies("/api/show") == [{"model": "smollm2:135m", "verbose": True}]
    metadata = text.split("  Metadata\n")[1].split("\n\n")[0].splitlines()
    assert metadata == sorted(metadata)
    assert {"    general.parameter_count                   134515008"} <= set(metadata)


@pytest.mark.parametrize("part", ["modelfile", "parameters", "template"])
def test_show_prints_one_part_alone(vllama: Vllama, server: ScriptedServer, part: str) -> None:
    assert vllama("show", "smollm2:135m", f"--{part}").stdout == json.loads(SHOW)[part] + "\n"


@pytest.mark.parametrize("part", ["license", "system"])
def test_a_part_that_the_model_lacks_is_empty(vllama: Vllama, server: ScriptedServer, part: str) -> None:
    assert vllama("show", "smollm2:135m", f"--{part}").stdout == "\n"


@pytest.mark.parametrize("flags", [["--license", "--system"], ["--template", "--json"]])
def test_show_takes_one_part_at_a_time(vllama: Vllama, server: ScriptedServer, flags: list[str]) -> None:
    result = vllama("show", "smollm2:135m", *flags)
    assert result.exit_code == 2
    assert "only one of --license, --modelfile, --parameters, --system, --template and --json" in result.stderr
    assert server.requests == []


def test_show_as_json_is_what_the_server_said(vllama: Vllama, server: ScriptedServer) -> None:
    assert json.loads(vllama("show", "smollm2:135m", "--json").stdout) == json.loads(SHOW)


def test_show_of_an_unknown_model_says_how_to_fetch_it(vllama: Vllama, server: ScriptedServer) -> None:
    server.on("POST", "/api/show", body(NOT_FOUND, 404))
    result = vllama("show", "nope")
    assert result.exit_code == 1
    assert result.stderr == "Error: model 'nope' not found; to fetch it, run `vllama pull nope`\n"


def test_a_description_shows_the_head_of_long_texts_only() -> None:
    info = {"license": "Apache License\n\nVersion 2.0\nJanuary 2004", "system": "You are brief."}
    assert describe(info, verbose=False).split("  System\n")[1] == (
        "    You are brief.\n\n  License\n    Apache License\n    Version 2.0\n    ...\n"
    )


def test_a_description_counts_parameters_itself_where_the_server_gives_no_size() -> None:
    info = {
        "model_info": {"general.architecture": "clip", "general.parameter_count": 8_000_000_000},
        "projector_info": {
            "general.architecture": "clip",
            "general.parameter_count": 305_000_000,
            "clip.vision.embedding_length": 1024,
            "clip.vision.projection_dim": 4096,
        },
    }
    model, projector = describe(info, verbose=False).split("  Projector\n")
    assert "    parameters      8B\n" in model
    assert projector == (
        "    architecture        clip\n    parameters          305M\n"
        "    embedding length    1024\n    dimensions          4096\n"
    )


def test_verbose_values_are_readable_whatever_their_type() -> None:
    info = {
        "model_info": {"a": True, "b": None, "c": [1, 2, 3, 4, 5], "d": [1, 2], "e": 0.00001},
        "tensors": [{"name": "token_embd.weight", "type": "Q8_0", "shape": [576, 49152]}],
    }
    text = describe(info, verbose=True)
    assert "    a    true\n    b    null\n    c    [1 2 3 ...+2 more]\n    d    [1 2]\n    e    1e-05\n" in text
    assert "    token_embd.weight    Q8_0    [576 49152]\n" in text
