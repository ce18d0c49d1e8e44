from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_snapshot import make_manifest

from vllama.cli import missing_models
from vllama.cli.serve import split_arguments
from vllama.durations import FOREVER, from_seconds
from vllama.errors import LoadFailed, SourceUnavailable
from vllama.names import ModelName
from vllama.settings import SETTINGS, Address, Preload, Settings
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress

from .conftest import Vllama

OWN = {"--model": True, "--host": True, "--keep-alive": True, "--compile": False, "--help": False, "-h": False}


@dataclass
class Gateway:
    """Stands in for the gateway's `serve` and keeps what it was called with."""

    exit_code: int = 0
    error: Exception | None = None
    settings: Settings | None = None
    reread: Callable[[], Settings] | None = None
    models: list[str] = field(default_factory=list)
    engine_flags: list[str] = field(default_factory=list)
    compile: bool | None = None
    pulled: list[str] = field(default_factory=list)
    pull_error: Exception | None = None

    def pull(self, store: ModelStore, name: ModelName) -> Iterator[Progress]:
        """Stand in for the store's `pull`."""
        del store
        self.pulled.append(name.display)
        yield Progress("pulling manifest")
        if self.pull_error:
            raise self.pull_error
        yield Progress("success")

    def serve(
        self,
        settings: Settings,
        reread: Callable[[], Settings],
        *,
        models: Sequence[str],
        engine_flags: Sequence[str],
        compile: bool,  # noqa: A002
    ) -> int:
        self.settings, self.reread, self.compile = settings, reread, compile
        self.models, self.engine_flags = list(models), list(engine_flags)
        if self.error:
            raise self.error
        return self.exit_code

    @property
    def started(self) -> Settings:
        assert self.settings is not None
        return self.settings


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    stand_in = Gateway()
    module = ModuleType("vllama.gateway.server")
    module.serve = stand_in.serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllama.gateway.server", module)
    monkeypatch.setattr(missing_models, "pull", stand_in.pull)
    return stand_in


@pytest.mark.parametrize(
    ("line", "ours", "engine"),
    [
        ("", "", ""),
        ("--model a --model b", "--model a --model b", ""),
        ("--max-num-seqs 256", "", "--max-num-seqs 256"),
        ("--max-num-seqs=256 --model a", "--model a", "--max-num-seqs=256"),
        ("--enable-prefix-caching --model a", "--model a", "--enable-prefix-caching"),
        ("--no-enable-prefix-caching --compile", "--compile", "--no-enable-prefix-caching"),
        ("--model=a --dtype float32 --host b", "--model=a --host b", "--dtype float32"),
        ("--lora-modules x=1 y=2 --compile", "--compile", "--lora-modules x=1 y=2"),
        ("--keep-alive -1 -tp 2", "--keep-alive -1", "-tp 2"),
        ("--keep_alive 5m --keep_alive=-1", "--keep-alive 5m --keep-alive=-1", ""),
        ("--seed -1 --swap -.5 --file -", "", "--seed -1 --swap -.5 --file -"),
        ("--model my_model --model=my_model", "--model my_model --model=my_model", ""),
        ("-O3 -O 2", "", "-O3 -O 2"),
        ('--compilation-config {"mode":0}', "", '--compilation-config {"mode":0}'),
        ("--compilation-config.mode 0", "", "--compilation-config.mode 0"),
        ("--model a -- --max-num-seqs 4 --host x", "--model a", "--max-num-seqs 4 --host x"),
        ("--model", "--model", ""),
        ("-h --model-impl auto", "-h", "--model-impl auto"),
    ],
)
def test_a_command_line_is_parted_into_ours_and_vllms(line: str, ours: str, engine: str) -> None:
    assert split_arguments(line.split(), OWN) == (ours.split(), engine.split())


@pytest.mark.parametrize(
    "line",
    [
        "smollm2:135m",
        "--model a b",
        "--compile a",
        "--max-num-seqs=256 a",
        "--model=x a",
        "-- a",
        "--enable-prefix-caching --model x a",
    ],
)
def test_a_value_that_belongs_to_no_flag_is_an_error(line: str) -> None:
    stray = line.rsplit(maxsplit=1)[-1]
    with pytest.raises(click.UsageError, match=f"unexpected argument '{stray}'.*--model {stray}"):
        split_arguments(line.split(), OWN)


flags = st.from_regex(r"--[a-z]{2,9}(-[a-z]{2,9}){0,2}", fullmatch=True).filter(lambda flag: flag not in OWN)
values = st.text(min_size=1, max_size=9).filter(lambda text: not text.startswith("-")) | st.integers().map(str)
engine_groups = st.one_of(
    flags.map(lambda flag: [flag]),
    st.tuples(flags, values).map(list),
    st.tuples(flags, values).map(lambda pair: ["=".join(pair)]),
)
our_groups = st.sampled_from([["--model", "a"], ["--model=b"], ["--compile"], ["--keep-alive", "-1"]])


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), our_groups, engine_groups)))
def test_nothing_is_lost_added_or_reordered(groups: list[tuple[bool, list[str], list[str]]]) -> None:
    line = [word for is_ours, ours, engine in groups for word in (ours if is_ours else engine)]
    assert split_arguments(line, OWN) == (
        [word for is_ours, ours, _ in groups if is_ours for word in ours],
        [word for is_ours, _, engine in groups if not is_ours for word in engine],
    )


def test_serve_hands_over_models_settings_and_vllms_flags(vllama: Vllama, gateway: Gateway) -> None:
    result = vllama(
        *("serve", "--model", "smollm2:135m", "--gpu-memory-utilization", "0.9", "--model", "qwen=/models/qwen"),
        *("--max-model-len=4096", "--keep-alive", "-1", "--enable-prefix-caching"),
    )
    assert result.exit_code == 0
    assert gateway.models == ["smollm2:135m", "qwen=/models/qwen"]
    assert gateway.engine_flags == [
        "--gpu-memory-utilization",
        "0.9",
        "--max-model-len=4096",
        "--enable-prefix-caching",
    ]
    assert gateway.started.keep_alive == FOREVER
    assert gateway.compile is False


def test_models_that_are_not_stored_are_pulled_first(
    vllama: Vllama, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "phi3?keepalive=30m")
    ModelStore(tmp_path / "models").put(make_manifest("stored"))
    result = vllama("serve", "--model", "qwen2.5:7b", "--model", "stored", "--model", "mine=/models/mine")
    assert result.exit_code == 0
    assert gateway.pulled == ["qwen2.5:7b", "phi3:latest"]
    assert "qwen2.5:7b is not stored; pulling it" in result.stderr
    assert "pulling manifest\nsuccess\n" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--no-pull"], {}), ([], {"VLLAMA_PULL": "false"}), ([], {"HF_HUB_OFFLINE": "1"})],
)
def test_nothing_is_pulled_where_that_is_forbidden(
    vllama: Vllama,
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
) -> None:
    for name, value in {**environment, "OLLAMA_PRELOAD_MODELS": "phi3"}.items():
        monkeypatch.setenv(name, value)
    vllama("serve", *arguments, "--model", "qwen2.5:7b")
    assert gateway.pulled == []


def test_a_named_model_that_cannot_be_pulled_ends_the_start(vllama: Vllama, gateway: Gateway) -> None:
    gateway.pull_error = SourceUnavailable("cannot reach the Hub")
    result = vllama("serve", "--model", "qwen2.5:7b")
    assert (result.exit_code, gateway.settings) == (1, None)
    assert result.stderr.endswith("Error: cannot reach the Hub\n")


def test_a_model_to_preload_that_cannot_be_pulled_is_a_warning(
    vllama: Vllama, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_PRELOAD_MODELS", "phi3")
    gateway.pull_error = SourceUnavailable("cannot reach the Hub")
    result = vllama("serve")
    assert result.exit_code == 0
    assert "Warning: cannot pull phi3: cannot reach the Hub\n" in result.stderr


def test_serve_without_arguments_uses_the_environment(
    vllama: Vllama, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:9000")
    monkeypatch.setenv("OLLAMA_MAX_QUEUE", "7")
    assert vllama("serve").exit_code == 0
    assert gateway.started.host == "0.0.0.0:9000"
    assert gateway.started.max_queue == 7
    assert (gateway.models, gateway.engine_flags) == ([], [])


def test_a_fast_start_is_an_eager_one_unless_a_later_flag_says_otherwise(vllama: Vllama, gateway: Gateway) -> None:
    vllama("serve", "--fast-start", "--no-enforce-eager")
    assert gateway.engine_flags == ["--enforce-eager", "--no-enforce-eager"]


def test_a_fast_start_cannot_compile(vllama: Vllama) -> None:
    result = vllama("serve", "--fast-start", "--compile")
    assert result.exit_code == 2
    assert "--fast-start and --compile cannot be used together" in result.stderr


def test_compile_asks_for_compilation(vllama: Vllama, gateway: Gateway) -> None:
    vllama("serve", "--compile")
    assert gateway.compile is True


@pytest.mark.parametrize("code", [0, 1, 5])
def test_the_gateways_return_value_is_the_exit_code(vllama: Vllama, gateway: Gateway, code: int) -> None:
    gateway.exit_code = code
    assert vllama("serve").exit_code == code


def test_a_failed_load_is_a_message_and_exit_code_1(vllama: Vllama, gateway: Gateway) -> None:
    gateway.error = LoadFailed("the worker did not become ready")
    result = vllama("serve", "--no-pull", "--model", "smollm2:135m")
    assert (result.exit_code, result.stderr) == (1, "Error: the worker did not become ready\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "address"),
    [
        (["--port", "8080"], "", Address("http", "127.0.0.1", 8080)),
        (["--host", "0.0.0.0"], "10.0.0.1:9000", Address("http", "0.0.0.0", 11434)),
        (["--host", "0.0.0.0", "--port", "8080"], "10.0.0.1:9000", Address("http", "0.0.0.0", 8080)),
        (["--host", "0.0.0.0:7000", "--port=8080"], "", Address("http", "0.0.0.0", 8080)),
        (["--port", "8080"], "10.0.0.1", Address("http", "10.0.0.1", 8080)),
        (["--port", "8080"], "::1", Address("http", "::1", 8080)),
        (["--port", "8080"], "https://10.0.0.1/base", Address("https", "10.0.0.1", 8080, "base")),
        (["--port", "0"], "", Address("http", "127.0.0.1", 0)),
    ],
)
def test_host_and_port_go_before_ollama_host(
    *,
    vllama: Vllama,
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: str,
    address: Address,
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", environment)
    assert vllama("serve", *arguments).exit_code == 0
    assert gateway.started.address == address


SAMPLES = {
    "max_header_size": ("1MiB", 1 << 20),
    "max_headers": ("9", 9),
    "header_timeout": ("0", None),
    "body_timeout": ("5s", 5_000_000_000),
    "max_connections": ("9", 9),
    "max_pipelined": ("9", 9),
    "max_body_size": ("1GiB", 1 << 30),
    "max_small_body_size": ("64KiB", 64 << 10),
    "max_bodies_size": ("10%", 0.1),
    "max_json_values": ("9", 9),
    "max_choices": ("9", 9),
    "max_schema_properties": ("5000", 5000),
    "schema_timeout": ("0", None),
    "grammar_timeout": ("0", None),
    "max_transfers": ("9", 9),
    "kept_logs": ("0", 0),
    "max_log_size": ("16MiB", 16 << 20),
    "max_converters": ("9", 9),
    "converter_memory": ("1GiB", 1 << 30),
    "converter_timeout": ("0", None),
    "template_timeout": ("0", None),
    "template_output": ("9", 9),
    "template_length": ("9", 9),
    "host": ("10.1.2.3:80", "10.1.2.3:80"),
    "origins": ("http://a,http://b", ("http://a", "http://b")),
    "keys": ("/srv/keys.json", Path("/srv/keys.json")),
    "management": ("admin", "admin"),
    "key_slots": ("9", 9),
    "usage": ("/srv/usage.sqlite3", Path("/srv/usage.sqlite3")),
    "audit_log": ("/srv/audit.jsonl", Path("/srv/audit.jsonl")),
    "keep_alive": ("10s", 10_000_000_000),
    "models": ("/srv/models", Path("/srv/models")),
    "precision": ("bf16", "bf16"),
    "load_timeout": ("0", None),
    "max_loaded_models": ("2", 2),
    "num_parallel": ("16", 16),
    "max_queue": ("9", 9),
    "hang_timeout": ("0", None),
    "drain_timeout": ("0", 0),
    "pin": ("a,b:7b", ("a", "b:7b")),
    "preload_models": ("phi3?keepalive=1m", (Preload("phi3", from_seconds(60)),)),
    "min_residency": ("0", 0),
    "yield_after": ("1m", from_seconds(60)),
    "sleep_budget": ("25%", 0.25),
    "sleep_timeout": ("0", None),
    "context_length": ("4096", 4096),
    "spare_workers": ("0", 0),
}


@pytest.mark.parametrize("name", [row.name for row in SETTINGS if not isinstance(row.default, bool)])
def test_every_setting_has_a_flag_that_beats_its_variable(
    vllama: Vllama, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text, value = SAMPLES[name]
    row = next(row for row in SETTINGS if row.name == name)
    monkeypatch.setenv(row.env, "1")
    assert vllama("serve", f"--{name.replace('_', '-')}", text).exit_code == 0
    assert getattr(gateway.started, name) == value


@pytest.mark.parametrize(
    ("arguments", "variable", "on"),
    [([], "0", False), ([], "1", True), (["--{}"], "0", True), (["--no-{}"], "1", False)],
)
@pytest.mark.parametrize(("name", "env"), [(row.name, row.env) for row in SETTINGS if isinstance(row.default, bool)])
def test_a_switch_beats_its_variable_both_ways(
    *,
    vllama: Vllama,
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    env: str,
    arguments: list[str],
    variable: str,
    on: bool,
) -> None:
    monkeypatch.setenv(env, variable)
    assert vllama("serve", *(argument.format(name) for argument in arguments)).exit_code == 0
    assert getattr(gateway.started, name) is on


def test_the_help_shows_variable_and_default_of_every_setting(vllama: Vllama) -> None:
    text = " ".join(vllama("serve", "--help").stdout.split())
    for row in SETTINGS:
        assert f"[{row.env}" in text
    assert "[OLLAMA_KEEP_ALIVE; default: 5m0s]" in text
    assert "[OLLAMA_LOAD_TIMEOUT; default: 10m0s]" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep-alive", "soon"], "Invalid value for '--keep-alive': time: invalid duration \"soon\""),
        (["--max-queue", "-3"], "Invalid value for '--max-queue': must not be negative"),
        (["--num-parallel=many"], "Invalid value for '--num-parallel'"),
        (["--port", "70000"], "Invalid value for '--port'"),
        (["--model"], "Option '--model' requires an argument"),
        (["--model", "a//b"], "invalid model name"),
        (["--model", "qwen="], "'qwen=': the path after = is missing"),
        (["smollm2:135m"], "unexpected argument 'smollm2:135m'; to load a model, use --model smollm2:135m"),
        (["--uds", "/tmp/socket"], "--uds is set by vllama and cannot be passed to vLLM"),
        (["--served_model_name=x"], "--served-model-name is set by vllama"),
        (["--", "--host", "x"], "--host is set by vllama"),
    ],
)
def test_wrong_arguments_start_nothing(vllama: Vllama, gateway: Gateway, arguments: list[str], message: str) -> None:
    result = vllama("serve", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert gateway.settings is None
