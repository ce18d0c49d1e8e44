from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllama.cli.progress import PlainProgress, ProgressBars
from vllama.errors import SourceUnavailable
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress

from .conftest import Vllama

DIGEST = "sha256:" + "3f1c9a0b77de" + "0" * 52
STEPS = [
    Progress("pulling manifest"),
    Progress("pulling 3f1c9a0b77de", DIGEST, 4_200_000, 2_100_000),
    Progress("pulling 3f1c9a0b77de", DIGEST, 4_200_000, 4_200_000),
    Progress("success"),
]


class Pulled:
    """Stands in for the store's `pull`: yields recorded steps and keeps its arguments."""

    def __init__(self) -> None:
        self.store: ModelStore | None = None
        self.asked: list[tuple[ModelName, Path | None, bool, bool]] = []
        self.error: Exception | None = None

    def __call__(
        self,
        store: ModelStore,
        name: ModelName,
        *,
        from_path: Path | None = None,
        force: bool = False,
        trust_remote_code: bool = False,
    ) -> Iterator[Progress]:
        self.store = store
        self.asked.append((name, from_path, force, trust_remote_code))
        yield from STEPS[:2]
        if self.error:
            raise self.error
        yield from STEPS[2:]


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch) -> Pulled:
    stand_in = Pulled()
    monkeypatch.setattr("vllama.store.pull.pull", stand_in)
    return stand_in


def test_pull_needs_no_server(vllama: Vllama, pulled: Pulled, no_server: str) -> None:
    result = vllama("pull", "smollm2:135m")
    assert result.exit_code == 0
    assert pulled.asked == [(ModelName.parse("smollm2:135m"), None, False, False)]


def test_pull_writes_plain_lines_where_there_is_no_terminal(vllama: Vllama, pulled: Pulled) -> None:
    result = vllama("pull", "smollm2:135m")
    assert result.stdout == ""
    assert result.stderr == "pulling manifest\npulling 3f1c9a0b77de (4.2 MB)\nsuccess\n"


def test_pull_as_json_prints_one_record_a_line(vllama: Vllama, pulled: Pulled) -> None:
    result = vllama("pull", "smollm2:135m", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [step.to_record() for step in STEPS]
    assert result.stderr == ""


def test_pull_takes_a_path_and_can_be_forced(vllama: Vllama, pulled: Pulled, tmp_path: Path) -> None:
    assert vllama("pull", "mine", "--from", str(tmp_path), "--force").exit_code == 0
    assert pulled.asked == [(ModelName.parse("mine"), tmp_path, True, False)]


def test_pull_trusts_code_only_where_that_is_said(vllama: Vllama, pulled: Pulled) -> None:
    assert vllama("pull", "mine", "--trust-remote-code").exit_code == 0
    assert pulled.asked == [(ModelName.parse("mine"), None, False, True)]


def test_pull_writes_into_the_store_that_the_settings_name(
    vllama: Vllama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot, store = tmp_path / "snapshot", tmp_path / "store"
    snapshot.mkdir()
    (snapshot / "config.json").write_text('{"model_type":"llama","architectures":["LlamaForCausalLM"]}')
    (snapshot / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (snapshot / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    result = vllama("pull", "mine", "--from", str(snapshot))
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "success")
    assert [str(manifest.name) for manifest in ModelStore(store).list()] == ["mine:latest"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a//b"], "Error: invalid model name"),
        (["mine", "--from", "no/such/place"], "Path 'no/such/place' does not exist"),
        ([], "Missing argument 'NAME'"),
    ],
)
def test_wrong_usage_pulls_nothing(vllama: Vllama, pulled: Pulled, arguments: list[str], message: str) -> None:
    result = vllama("pull", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert pulled.asked == []


def test_a_source_that_fails_ends_with_1_and_its_message(vllama: Vllama, pulled: Pulled) -> None:
    pulled.error = SourceUnavailable("the hub does not answer")
    result = vllama("pull", "smollm2:135m")
    assert result.exit_code == 1
    assert result.stderr.endswith("pulling 3f1c9a0b77de (4.2 MB)\nError: the hub does not answer\n")


def test_plain_lines_name_each_step_once_however_files_take_turns() -> None:
    log = io.StringIO()
    plain = PlainProgress(log)
    for digest in ("sha256:a", "sha256:b", "sha256:a", "sha256:b"):
        plain.update(Progress(f"pulling {digest[-1]}", digest, 10, 5))
    assert log.getvalue() == "pulling a (10 B)\npulling b (10 B)\n"


class Screen:
    """A terminal and a clock: understands the escape sequences that the bars use."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.size = os.terminal_size((columns, rows))
        self.stream = io.StringIO()
        self.now = 100.0
        self.bars = ProgressBars(self.stream, clock=lambda: self.now, size=lambda: self.size)

    @property
    def lines(self) -> list[str]:
        shown: list[str] = []
        row = 0
        for written in self.stream.getvalue().split("\n")[:-1]:
            text = written
            if text.startswith("\x1b["):
                up, text = text[2:].split("A", 1)
                assert int(up) < self.size.lines, "the cursor cannot go above the screen"
                row -= int(up)
            assert text.startswith("\r")
            assert text.endswith("\x1b[K")
            shown[row:] = [text[1:-3], *shown[row + 1 :]]
            row += 1
        return shown


def test_a_bar_shows_share_size_and_rate() -> None:
    screen = Screen()
    screen.bars.update(Progress("pulling 3f1c", DIGEST, 4_000_000, 0))
    screen.now += 2
    screen.bars.update(Progress("pulling 3f1c", DIGEST, 4_000_000, 2_000_000))
    [line] = screen.lines
    assert line.startswith("pulling 3f1c:  50% ▕███")
    assert line.endswith("▏   2 MB/4 MB    1 MB/s")
    assert len(line) <= 80
    bar = line[line.index("▕") + 1 : line.index("▏")]
    assert bar.count("█") == len(bar) // 2


def test_a_finished_bar_is_full_and_shows_its_size_only() -> None:
    screen = Screen()
    for step in STEPS:
        screen.bars.update(step)
        screen.now += 1
    manifest, file, success = screen.lines
    assert (manifest, success) == ("pulling manifest", "success")
    assert file.startswith("pulling 3f1c9a0b77de: 100% ▕██")
    assert file.endswith("█▏ 4.2 MB")


def test_bars_are_redrawn_ten_times_a_second_at_most_and_at_the_end() -> None:
    screen = Screen()
    with screen.bars:
        for completed in range(50):
            screen.bars.update(Progress("pulling 3f1c", DIGEST, 100, completed))
            screen.now += 0.01
        assert screen.stream.getvalue().count("\n") == 5
    assert "49%" in screen.lines[0]


def test_more_files_than_rows_scroll_away_unharmed() -> None:
    screen = Screen(rows=4)
    for done in (0, 10):
        for file in range(8):
            screen.now += 1
            screen.bars.update(Progress(f"pulling {file}", f"sha256:{file}", 10, done))
    assert [line.split(":")[0] for line in screen.lines] == [f"pulling {file}" for file in range(8)]
    assert all("100%" in line for line in screen.lines[-3:])


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    screen = Screen(columns)
    for step in [*STEPS, Progress("verifying sha256 digest of everything")]:
        screen.bars.update(step)
        screen.now += 1
    assert max(map(len, screen.lines)) < columns


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../Qwen2.5-7B"])
def test_a_path_is_pulled_under_its_last_part(vllama: Vllama, pulled: Pulled, tmp_path: Path, spelling: str) -> None:
    directory = tmp_path / "Qwen2.5-7B"
    directory.mkdir()
    path = spelling.format(directory)
    assert vllama("pull", path).exit_code == 0
    assert pulled.asked == [(ModelName.parse("Qwen2.5-7B"), Path(path), False, False)]


def test_a_path_that_is_not_there_is_named(vllama: Vllama, pulled: Pulled) -> None:
    result = vllama("pull", "./nowhere")
    assert result.exit_code == 2
    assert "no such file or directory: ./nowhere" in result.stderr
    assert pulled.asked == []
