"""`vllama bench` from the command line to what is printed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_model import Script, serving_beside

from vllama.bench import experiment
from vllama.bench.result import load
from vllama.cli.bench import BUDGET_SECONDS, command, design_of
from vllama.cli.bench_output import Outputs
from vllama.cli.progress import ProgressLine
from vllama.errors import RequestError

from .conftest import Vllama

QUICK = Script(first=0.01, per_token=0.002)
FEW = ("--concurrency", "1,4", "--iterations", "8", "--tokens", "5")


@pytest.fixture(autouse=True)
def short_look_at_the_idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(experiment, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving_beside(QUICK) as address:
        monkeypatch.setenv("OLLAMA_HOST", address)
        yield address


def options(*arguments: str) -> dict[str, object]:
    """The options of a command line, with their defaults."""
    context = command.make_context(
        "bench", ["m", *(() if "overhead" in arguments else ("--url", "http://a")), *arguments]
    )
    Outputs.taken_from(context.params)
    return context.params


def test_a_table_and_the_diagnosis_are_printed_and_the_progress_goes_to_stderr(vllama: Vllama, url: str) -> None:
    done = vllama("bench", "m", *FEW)

    assert done.exit_code == 0
    assert "streaming" in done.stdout
    assert "batches: from C = 1 to C = 4" in done.stdout
    assert "streaming, C = 4" in done.stderr


def test_the_result_goes_to_stdout_as_json_and_to_a_file(vllama: Vllama, url: str, tmp_path: Path) -> None:
    done = vllama("bench", "m", *FEW, "--json", "--output", str(tmp_path / "r.json"))
    result = load(done.stdout.encode())

    assert done.exit_code == 0
    assert [run.metrics.ok for run in result.runs] == [8, 8]
    assert result.options["concurrency"] == [1, 4]
    assert load((tmp_path / "r.json").read_bytes()) == result


@pytest.mark.parametrize("api", ["ollama", "openai"])
def test_the_only_model_needs_no_name(vllama: Vllama, api: str) -> None:
    with serving_beside(replace(QUICK, resident={"m"})) as url:
        done = vllama("bench", "--url", url, "--api", api, *FEW, "--json")

    assert load(done.stdout.encode()).systems[0].model == "m"


def test_one_of_several_models_has_to_be_named(vllama: Vllama) -> None:
    with serving_beside(replace(QUICK, models=("m", "n"))) as url:
        done = vllama("bench", "--url", url, "--api", "openai", *FEW)

    assert done.exit_code == 2
    assert "which model?" in done.stderr


def test_prompts_and_images_of_files_are_what_is_asked(vllama: Vllama, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("Why is the sky blue?\n")
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"PNG")
    script = replace(QUICK, bodies=[])
    with serving_beside(script) as url:
        text = vllama("bench", "m", "--url", url, *FEW, "--prompts", str(tmp_path / "questions.txt"), "--same-prefix")
        asked = [body["messages"][0] for body in script.bodies]
        script.bodies.clear()
        picture = vllama("bench", "m", "--url", url, *FEW, "--prompts", str(images))
        shown = [body["messages"][0]["images"] for body in script.bodies]

    assert (text.exit_code, picture.exit_code) == (0, 0)
    assert {message["content"] for message in asked} == {"Why is the sky blue?"}
    assert {len(image) for image in shown} == {1}


def test_a_file_without_prompts_is_refused_before_anything_is_asked(vllama: Vllama, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    script = replace(QUICK, bodies=[])
    with serving_beside(script) as url:
        done = vllama("bench", "m", "--url", url, *FEW, "--prompts", str(tmp_path / "empty.txt"))

    assert done.exit_code == 2
    assert "no prompt in it" in done.stderr
    assert script.bodies == []


def test_a_comparison_is_printed_or_refused(vllama: Vllama, url: str) -> None:
    with serving_beside(replace(QUICK, context=2048)) as other:
        refused = vllama("bench", "m", *FEW, "--against", other)
        allowed = vllama("bench", "m", *FEW, "--against", other, "--repetitions", "1", "--allow-different")

    assert refused.exit_code == 1
    assert "the sides differ: context" in refused.stderr
    assert allowed.exit_code == 0
    assert "time to the whole reply" in allowed.stdout
    assert "Compared from one run of each" in allowed.stdout


def test_a_server_that_is_not_there_ends_with_an_error(vllama: Vllama, no_server: str) -> None:
    done = vllama("bench", "m", *FEW)

    assert done.exit_code == 3
    assert f"could not connect to {no_server}" in done.stderr


def test_a_bench_in_which_nothing_was_answered_fails(vllama: Vllama, monkeypatch: pytest.MonkeyPatch) -> None:
    script = replace(QUICK, fates=["ok"] * 2 + ["refuse"] * 100)
    with serving_beside(script) as url:
        done = vllama("bench", "m", "--url", url, "--concurrency", "1", "--iterations", "3", "--warmup", "0")

    assert done.exit_code == 1
    assert "no request was answered" in done.stderr
    assert "3 of 3 requests failed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--concurrency", "1,0"), "'1,0' is not a list of positive numbers"),
        (("--rate", "fast"), "'fast' is not a list of positive numbers"),
        (("--prompts", "/nowhere"), "does not exist"),
    ],
)
def test_a_bad_value_is_wrong_usage(vllama: Vllama, arguments: tuple[str, ...], message: str) -> None:
    done = vllama("bench", "m", *arguments)

    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--control", "n"), "--control needs --against URL"),
        (("--against-model", "n"), "--against-model needs --against URL"),
        (("--prompts", ".", "--prompt-tokens", "9"), "--prompt-tokens is for synthetic prompts"),
        (("--rate", "5", "--mode", "sequential"), "--rate has no place"),
        (("--mode", "switch"), "--switch-model"),
        (("--mode", "overhead", "--against", "http://b"), "--against has no place in --mode overhead"),
        (("--mode", "coldstart", "--prompt-tokens", "9"), "--prompt-tokens has no place in --mode coldstart"),
        (("--arrivals", "poisson"), "--arrivals needs --rate"),
        (("--against", "http://a"), "nothing would be compared"),
    ],
)
def test_options_that_exclude_each_other_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        design_of(options(*arguments), ())


def test_by_default_all_runs_together_take_less_than_a_minute() -> None:
    alone, both = design_of(options(), ()), design_of(options("--against", "http://b"), ())

    assert (alone.seconds, len(alone.levels), alone.repetitions) == (BUDGET_SECONDS / 2, 2, 1)
    assert (both.seconds, both.repetitions) == (BUDGET_SECONDS / 12, 3)
    assert design_of(options("--iterations", "50"), ()).seconds is None


def test_all_modes_are_sequential_concurrent_and_streaming() -> None:
    levels = design_of(options("--mode", "all", "--concurrency", "2,4"), ()).levels

    assert [(level.mode, level.concurrency) for level in levels] == [
        ("sequential", 1),
        ("concurrent", 2),
        ("concurrent", 4),
        ("streaming", 2),
        ("streaming", 4),
    ]


def test_sides_are_named_by_label_by_address_or_by_what_differs() -> None:
    def names(*arguments: str) -> list[str]:
        return [system.name for system in design_of(options(*arguments), ()).systems]

    assert names("--against", "http://b:1") == ["a", "b:1"]
    assert names("--against", "http://b", "--label", "x", "--against-label", "y") == ["x", "y"]
    assert names("--against", "http://a", "--against-api", "openai") == ["a ollama", "a openai"]
    assert names("--against", "http://b", "--against-model", "n", "--control", "n") == ["a", "b", "control"]


def test_the_bar_says_how_much_time_is_left() -> None:
    now = 100.0
    bar = ProgressLine(sys.stderr, clock=lambda: now)
    bar("run", 0.01)
    line = bar.line("run", 0.25, 130.0, 60)

    assert line.endswith("25%  1:30 left")
    assert "█" in line
    assert len(bar.line("a name that is far too long for the terminal", 0.5, 130.0, 40)) < 40


def test_options_survive_json() -> None:
    design = design_of(
        options("--rate", "2,4", "--schema", __file__.replace("test_cli_bench.py", "recorded/ps.json")), ()
    )

    assert json.loads(json.dumps(design.options))["rate"] == [2.0, 4.0]


def test_ctrl_c_prints_what_was_measured_and_ends_with_130() -> None:
    # Where the tests run in the background the signal may be ignored, so the program takes it back first.
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vllama.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    script = replace(QUICK, bodies=[])
    with serving_beside(script) as url:
        command_line = [
            sys.executable,
            "-c",
            program,
            "bench",
            "m",
            "--url",
            url,
            "--concurrency",
            "2",
            "--duration",
            "60",
        ]
        with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            while len(script.bodies) < 50:
                assert running.poll() is None
                threading.Event().wait(0.01)
            running.send_signal(signal.SIGINT)
            printed, said = running.communicate(timeout=30)

    assert running.returncode == 130
    assert "streaming" in printed
    assert "Traceback" not in said
