from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO

from bench_results import bench

from vllama.bench.cost import costs_of
from vllama.bench.report.figures import number, ratio
from vllama.bench.report.text import comma_separated, console, markdown
from vllama.bench.result import Decomposition, System


def test_the_console_shows_a_table_that_fits_and_what_follows_from_it() -> None:
    text = console(bench(levels=[1, 8], repetitions=1))
    lines = text.splitlines()
    assert lines[0].startswith("vllama: smollm2:135m at http://127.0.0.1:11434, ollama API, server 0.24.0")
    header = next(line for line in lines if line.startswith("system"))
    assert len(header) <= 120
    assert header.split()[-2:] == ["%", "tokens/J"]
    row = next(line for line in lines if line.startswith("vllama  streaming  8"))
    assert len(row) <= len(header)
    assert "! The sides differ in quantization: vllama BF16, ollama Q4_0." in lines
    [ratio] = [line for line in lines if line.startswith("vllama / ollama  streaming  8  output tokens/s")]
    assert ratio.endswith("better")


def test_a_figure_that_nobody_has_gets_no_column() -> None:
    text = console(bench(["vllama"], [1], repetitions=1, gpu=False))
    assert "GPU %" not in text
    assert "goodput" not in text
    assert "· No GPU: Driver Not Loaded; figures of the processors only." in text


def test_an_interrupted_result_says_so_first() -> None:
    text = console(replace(bench(["vllama"], [1], repetitions=1), interrupted=True))
    findings = [line for line in text.splitlines() if line.startswith("! ")]
    assert findings[0] == "! Interrupted: this is what was measured before."


def test_a_decomposition_is_said_as_a_product() -> None:
    part = Decomposition("output_tokens_per_second", "a", "b", "c", "streaming", 8, server=3.0, model=0.5, total=1.5)
    text = console(replace(bench(["vllama"], [1], repetitions=1), decompositions=(part,)))
    assert "at C = 8: a / c = 1.50, of which the server 3.00 (b / c) times the model 0.50 (a / b)." in text


def test_markdown_is_a_whole_report_in_which_names_break_no_table() -> None:
    result = bench(["vllama"], [1], repetitions=1)
    odd = replace(
        result,
        systems=(replace(result.systems[0], name="a|b"),),
        summaries=tuple(replace(summary, system="a|b") for summary in result.summaries),
    )
    lines = markdown(odd, costs_of(odd, 3.0)).splitlines()
    assert lines[0] == "# smollm2:135m: a|b"
    table = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "`vllama bench smollm2:135m --concurrency 1`" in lines
    assert "## Cost" in lines


def test_csv_has_a_line_for_each_summary_with_every_metric_under_its_name_in_the_json() -> None:
    result = bench(levels=[1, 2], repetitions=1)
    lines = list(csv.DictReader(StringIO(comma_separated(result))))
    assert [(line["system"], line["concurrency"]) for line in lines] == [
        ("vllama", "1"),
        ("ollama", "1"),
        ("vllama", "2"),
        ("ollama", "2"),
    ]
    metrics = result.summaries[0].metrics
    assert metrics.ttft_ms
    assert float(lines[0]["ttft_ms.p95"]) == metrics.ttft_ms.p95
    assert float(lines[0]["output_tokens_per_second"]) == metrics.output_tokens_per_second
    assert float(lines[0]["machine.joules"]) > 0
    assert lines[0]["rate"] == ""


def test_systems_with_models_of_their_own_are_named_with_them() -> None:
    result = bench(levels=[1], repetitions=1)
    systems = (result.systems[0], System("ollama", "http://h", "openai", "other"))
    assert markdown(replace(result, systems=systems)).startswith(
        "# vllama with smollm2:135m against ollama with other\n"
    )


def test_numbers_keep_three_digits() -> None:
    assert [number(value) for value in (0, 0.0012345, 12.345, 99.96, 1234.5)] == [
        "0",
        "0.00123",
        "12.3",
        "100",
        "1,234",
    ]


def test_a_ratio_shows_on_which_side_of_one_it_is() -> None:
    assert [ratio(value) for value in (0.6217, 0.9984, 1.0031, 2.4649)] == ["0.622", "0.998", "1.003", "2.46"]


def test_the_cpu_time_of_server_processes_is_told_per_token() -> None:
    result = bench(["vllama"], [1], repetitions=2)
    runs = tuple(replace(run, server_cpu={"worker": 14 * 50 * 2000}) for run in result.runs)
    text = console(replace(result, runs=runs))
    assert "worker µs/token" in text
    assert next(line for line in text.splitlines() if line.startswith("vllama  streaming")).split()[-1] == "2"
