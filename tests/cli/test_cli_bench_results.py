"""`vllama bench report`, `compare` and `rerun`, on results of benches that never ran."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from bench_results import bench
from scripted_model import Script, serving_beside

from vllama.bench import experiment
from vllama.bench.result import ExperimentResult, dump, load
from vllama.bench.schema import published
from vllama.cli.bench import SUBCOMMANDS
from vllama.cli.bench_rerun import arguments_of

from .conftest import Vllama


def kept(folder: Path, name: str, result: ExperimentResult) -> str:
    path = folder / name
    path.write_bytes(dump(result))
    return str(path)


@pytest.fixture(scope="module")
def once() -> ExperimentResult:
    return bench(["vllama"], [1, 8], repetitions=3, gpu=False)


@pytest.fixture
def file(tmp_path: Path, once: ExperimentResult) -> str:
    return kept(tmp_path, "result.json", once)


def test_a_report_is_a_table_unless_something_else_is_asked_for(vllama: Vllama, file: str) -> None:
    assert "TTFT p50 ms" in vllama("bench", "report", file).stdout
    assert vllama("bench", "report", file, "--markdown").stdout.startswith("# smollm2:135m: vllama\n")
    assert vllama("bench", "report", file, "--csv").stdout.startswith("system,mode,model,concurrency,")


def test_json_is_the_result_itself(vllama: Vllama, file: str, once: ExperimentResult) -> None:
    assert load(vllama("bench", "report", file, "--json").stdout.encode()) == once


def test_a_copy_is_kept_whatever_is_printed(vllama: Vllama, file: str, once: ExperimentResult, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    result = vllama("bench", "report", file, "--csv", "-o", str(copy))
    assert load(copy.read_bytes()) == once
    assert str(copy) in result.stderr
    assert str(copy) not in result.stdout


def test_page_and_pictures_are_written(vllama: Vllama, file: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    html, pictures = tmp_path / "report.html", tmp_path / "new" / "plots"
    result = vllama("bench", "report", file, "--html", str(html), "--png", str(pictures))
    assert result.exit_code == 0
    assert html.read_text().startswith("<!doctype html>")
    names = sorted(path.name for path in pictures.iterdir())
    assert {"throughput.png", "ttft.png", "e2e-distribution.png", "machine.png"} <= set(names)
    assert all((pictures / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_without_matplotlib_it_says_what_to_install_and_does_nothing_else(
    vllama: Vllama, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllama.bench.report.plots.find_spec", lambda name: None)
    result = vllama("bench", "report", file, "--html", str(tmp_path / "report.html"))
    assert result.exit_code == 2
    assert "pip install 'vllama-server[bench]'" in result.stderr
    assert result.stdout == ""


def test_cost_and_users_are_worked_out_in_the_open(vllama: Vllama, file: str) -> None:
    text = vllama("bench", "report", file, "--cost", "3.00", "--users", "100").stdout
    assert "3.00 per machine and hour × 1 / (" in text
    assert "100 concurrent users / 8 served together = 12.50, rounded up 13, × 1 machine = 13; 39.00 per hour." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "--csv"], "exclude each other"),
        (["--users", "5"], "--users needs --cost"),
        (["--cost", "0"], "0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    vllama: Vllama, file: str, arguments: list[str], message: str
) -> None:
    result = vllama("bench", "report", file, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_file_that_is_no_result_is_named(vllama: Vllama, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    result = vllama("bench", "report", str(path))
    assert result.exit_code == 2
    assert f"{path}: not the result of a bench" in result.stderr


def test_the_same_result_twice_shows_no_difference(vllama: Vllama, file: str) -> None:
    result = vllama("bench", "compare", file, file, "--fail-if", "0%")
    assert result.exit_code == 0
    assert "no difference" in result.stdout
    assert "worse" not in result.stdout.replace("worse by more", "")
    assert "No figures worse by more than 0 %." in result.stdout
    assert "These changed" not in result.stdout


@pytest.fixture
def slower(tmp_path: Path) -> str:
    return kept(tmp_path, "slower.json", bench(["vllama"], [1, 8], repetitions=3, gpu=False, faster=0.9))


def test_a_slowdown_beyond_the_limit_and_beyond_doubt_fails(vllama: Vllama, file: str, slower: str) -> None:
    result = vllama("bench", "compare", file, slower, "--fail-if", "5%")
    assert result.exit_code == 1
    line = next(line for line in result.stdout.splitlines() if "output_tokens_per_second" in line)
    assert "0.9" in line
    assert line.endswith("worse (!)")


@pytest.mark.parametrize("arguments", [(), ("--fail-if", "30%"), ("--fail-if", "0.3")])
def test_a_slowdown_within_the_limit_is_shown_and_does_not_fail(
    vllama: Vllama, file: str, slower: str, arguments: tuple[str, ...]
) -> None:
    result = vllama("bench", "compare", file, slower, *arguments)
    assert result.exit_code == 0
    assert "worse" in result.stdout


def test_a_speedup_does_not_fail(vllama: Vllama, file: str, slower: str) -> None:
    assert vllama("bench", "compare", slower, file, "--fail-if", "0%").exit_code == 0


def test_a_speedup_with_replies_that_parse_worse_fails(vllama: Vllama, tmp_path: Path, once: ExperimentResult) -> None:
    def parsing(result: ExperimentResult, valid: bool) -> ExperimentResult:
        runs = tuple(
            replace(run, samples=tuple(replace(sample, valid=valid) for sample in run.samples)) for run in result.runs
        )
        return replace(result, runs=runs)

    before = kept(tmp_path, "before.json", parsing(once, True))
    faster = kept(tmp_path, "after.json", parsing(bench(["vllama"], [1, 8], 3, gpu=False, faster=1.5), False))
    result = vllama("bench", "compare", before, faster, "--fail-if", "50%")
    assert result.exit_code == 1
    assert "regression (!)" in result.stdout


def test_what_else_has_changed_is_named(vllama: Vllama, file: str, once: ExperimentResult, tmp_path: Path) -> None:
    environment: dict[str, Any] = json.loads(json.dumps(once.environment))
    environment["hardware"]["cores"] = 8
    other = replace(once, environment=environment, workload=replace(once.workload, output_tokens=99))
    text = vllama("bench", "compare", file, kept(tmp_path, "other.json", other)).stdout
    assert "  hardware.cores: 16 → 8" in text
    assert "  workload: output_tokens: 50 → 99" in text


def test_a_comparison_for_scripts(vllama: Vllama, file: str, slower: str) -> None:
    found = json.loads(vllama("bench", "compare", file, slower, "--json", "--fail-if", "5%").stdout)
    assert found["comparisons"][0]["system"] == "slower"
    assert found["comparisons"][0]["baseline"] == "result"
    assert {c["verdict"] for c in found["failures"]} == {"worse"}


def test_results_with_nothing_in_common_are_not_compared(vllama: Vllama, file: str, tmp_path: Path) -> None:
    other = kept(tmp_path, "other.json", bench(["vllama"], [2], repetitions=1))
    result = vllama("bench", "compare", file, other)
    assert result.exit_code == 2
    assert "no mode and load in common" in result.stderr


@pytest.mark.parametrize("share", ["five", "-1%", "150%"])
def test_a_limit_that_is_no_share_is_refused(vllama: Vllama, file: str, share: str) -> None:
    result = vllama("bench", "compare", file, file, "--fail-if", share)
    assert result.exit_code == 2
    assert "is not a share such as 5% or 0.05" in result.stderr


@pytest.fixture
def measured(vllama: Vllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file of a bench that ran, against a server that is still there."""
    monkeypatch.setattr(experiment, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(experiment, "SETTLE_SECONDS", 0.05)
    path = tmp_path / "measured.json"
    with serving_beside(Script(first=0.01, per_token=0.002)) as url:
        options = ("--url", url, "--concurrency", "1,2", "--iterations", "4", "--tokens", "5", "--seed", "3")
        assert vllama("bench", "m", *options, "-o", str(path)).exit_code == 0
        yield str(path)


def test_what_a_bench_writes_keeps_the_published_schema(measured: str) -> None:
    result = json.loads(Path(measured).read_bytes())
    jsonschema.Draft202012Validator(json.loads(published())).validate(result)
    assert result["environment"]["servers"]
    assert result["runs"][0]["telemetry"]["series"]["server_rss_bytes"]


def test_a_rerun_measures_with_the_same_options_and_says_what_is_different_now(
    vllama: Vllama, measured: str, tmp_path: Path
) -> None:
    before = load(Path(measured).read_bytes())
    environment: dict[str, Any] = json.loads(json.dumps(before.environment))
    environment["versions"]["python"] = "2.7"
    done = vllama("bench", "rerun", kept(tmp_path, "old.json", replace(before, environment=environment)), "--json")

    assert done.exit_code == 0
    assert "changed since: versions.python: 2.7 → 3." in done.stderr
    after = load(done.stdout.encode())
    assert after.options == {**before.options, "url": before.systems[0].url}
    assert [(run.level, len(run.samples)) for run in after.runs] == [
        (run.level, len(run.samples)) for run in before.runs
    ]
    assert after.systems == before.systems


def test_a_result_without_options_cannot_be_repeated(vllama: Vllama, once: ExperimentResult, tmp_path: Path) -> None:
    done = vllama("bench", "rerun", kept(tmp_path, "bare.json", replace(once, options={})))
    assert done.exit_code == 2
    assert "does not keep the options" in done.stderr


@click.command()
@click.argument("model")
@click.option("--iterations", "-n", type=int)
@click.option("--stream/--no-stream")
@click.option("--tag", multiple=True)
@click.option("--quiet", is_flag=True)
@click.option("--rate", type=float)
def _measure(**values: Any) -> None:
    click.echo(json.dumps(values))


@pytest.mark.parametrize(
    "values",
    [
        {"model": "m", "iterations": 5, "stream": False, "tag": ["a", "b"], "quiet": True, "rate": 0.5},
        {"model": "--odd", "iterations": None, "stream": True, "tag": [], "quiet": False, "rate": None},
    ],
)
def test_options_that_a_result_keeps_become_the_same_command_again(values: dict[str, Any]) -> None:
    seen: dict[str, Any] = {}
    recording = click.Command("measure", params=_measure.params, callback=lambda **given: seen.update(given))
    recording.main(arguments_of(recording, values), standalone_mode=False)
    assert {**seen, "tag": list(seen["tag"])} == values


def test_a_list_for_an_option_that_is_given_once_is_joined() -> None:
    assert arguments_of(_measure, {"model": "m", "rate": [1.0, 2.5]}) == ["--rate", "1,2.5", "--", "m"]


def test_the_help_names_what_can_be_done_with_results(vllama: Vllama) -> None:
    text = vllama("bench", "--help").stdout
    for name in SUBCOMMANDS:
        assert f"vllama bench {name} " in text
        assert vllama("bench", name, "--help").exit_code == 0
