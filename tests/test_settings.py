"""The table of settings, read from the environment (contract §6.1)."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.durations import FOREVER, from_seconds
from vllama.settings import SETTINGS, Address, Preload, Settings

SECOND = 1_000_000_000


def test_the_table_has_one_row_for_each_field_and_each_row_says_what_it_means() -> None:
    assert [row.name for row in SETTINGS] == [field.name for field in fields(Settings)]
    assert len({row.env for row in SETTINGS}) == len(SETTINGS)
    assert all(row.meaning for row in SETTINGS)


def test_sampling_options_of_a_model_to_preload_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.from_environment({"OLLAMA_PRELOAD_MODELS": "phi3?temperature=0.2&keepalive=30m&top_k=1"})
    assert settings.preload_models == (Preload("phi3", from_seconds(1800)),)
    assert "temperature, top_k of phi3 has no effect on a load" in caplog.text


def test_an_empty_environment_gives_ollamas_defaults() -> None:
    settings = Settings.from_environment({})
    assert settings.address == Address("http", "127.0.0.1", 11434)
    assert settings.keep_alive == 300 * SECOND
    assert settings.max_queue == 512
    assert (settings.resident_limit(), settings.resident_limit(gpus=2)) == (3, 6)
    assert (settings.num_parallel, settings.context_length, settings.debug) == (0, 0, False)


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("OLLAMA_HOST", "0.0.0.0:8080", "host", "0.0.0.0:8080"),
        ("OLLAMA_ORIGINS", "http://a, https://*.b ,", "origins", ("http://a", "https://*.b")),
        ("OLLAMA_KEEP_ALIVE", "10m", "keep_alive", 600 * SECOND),
        ("OLLAMA_KEEP_ALIVE", "30", "keep_alive", 30 * SECOND),
        ("OLLAMA_KEEP_ALIVE", "0", "keep_alive", 0),
        ("OLLAMA_KEEP_ALIVE", "-1", "keep_alive", FOREVER),
        ("OLLAMA_KEEP_ALIVE", "-5m", "keep_alive", FOREVER),
        ("OLLAMA_MODELS", "/srv/models", "models", Path("/srv/models")),
        ("OLLAMA_LOAD_TIMEOUT", "5m", "load_timeout", 300 * SECOND),
        ("OLLAMA_LOAD_TIMEOUT", "90", "load_timeout", 90 * SECOND),
        ("OLLAMA_LOAD_TIMEOUT", "0", "load_timeout", None),
        ("OLLAMA_LOAD_TIMEOUT", "-1s", "load_timeout", None),
        ("OLLAMA_MAX_LOADED_MODELS", "1", "max_loaded_models", 1),
        ("OLLAMA_NUM_PARALLEL", "16", "num_parallel", 16),
        ("OLLAMA_MAX_QUEUE", "1", "max_queue", 1),
        ("VLLAMA_DRAIN_TIMEOUT", "1m", "drain_timeout", 60 * SECOND),
        ("VLLAMA_DRAIN_TIMEOUT", "-1", "drain_timeout", FOREVER),
        ("VLLAMA_PIN", "a, b:7b ,", "pin", ("a", "b:7b")),
        ("OLLAMA_PRELOAD_MODELS", "a, b:7b ,", "preload_models", (Preload("a"), Preload("b:7b"))),
        ("OLLAMA_PRELOAD_MODELS", "a?keepalive=30m", "preload_models", (Preload("a", from_seconds(1800)),)),
        ("OLLAMA_PRELOAD_MODELS", "a?keep_alive=-1&num_ctx=9", "preload_models", (Preload("a", FOREVER),)),
        ("VLLAMA_PULL", "0", "pull", False),
        ("VLLAMA_MIN_RESIDENCY", "1m", "min_residency", 60 * SECOND),
        ("VLLAMA_MIN_RESIDENCY", "0", "min_residency", 0),
        ("VLLAMA_YIELD_AFTER", "-1", "yield_after", 0),
        ("VLLAMA_SLEEP_BUDGET", "0", "sleep_budget", 0),
        ("VLLAMA_SLEEP_BUDGET", "25%", "sleep_budget", 0.25),
        ("VLLAMA_SLEEP_BUDGET", "250 %", "sleep_budget", 1.0),
        ("VLLAMA_SLEEP_BUDGET", "1000", "sleep_budget", 1000),
        ("VLLAMA_SLEEP_BUDGET", "16GiB", "sleep_budget", 16 * 1024**3),
        ("VLLAMA_SLEEP_BUDGET", "1.5 TB", "sleep_budget", 1500 * 1000**3),
        ("VLLAMA_SLEEP_BUDGET", "8g", "sleep_budget", 8 * 1000**3),
        ("VLLAMA_SLEEP_TIMEOUT", "0", "sleep_timeout", None),
        ("OLLAMA_CONTEXT_LENGTH", "4096", "context_length", 4096),
        ("OLLAMA_DEBUG", "1", "debug", True),
        ("OLLAMA_DEBUG", "true", "debug", True),
        ("OLLAMA_DEBUG", "false", "debug", False),
        ("OLLAMA_DEBUG", "F", "debug", False),
        ("OLLAMA_DEBUG", "0", "debug", False),
        ("OLLAMA_DEBUG", "nonsense", "debug", True),
    ],
)
def test_every_variable_sets_its_value(variable: str, text: str, name: str, value: Any) -> None:
    assert getattr(Settings.from_environment({variable: text}), name) == value


def test_a_home_directory_in_the_path_of_the_store_is_expanded() -> None:
    assert Settings.from_environment({"OLLAMA_MODELS": "~/m"}).models == Path.home() / "m"


@pytest.mark.parametrize("text", ['"7"', "'7'", "  7 ", ' "7" '])
def test_blanks_and_quotes_around_a_value_do_not_count(text: str) -> None:
    assert Settings.from_environment({"OLLAMA_MAX_QUEUE": text}).max_queue == 7


@pytest.mark.parametrize(
    ("variable", "text", "name", "default"),
    [
        ("OLLAMA_MAX_QUEUE", "many", "max_queue", 512),
        ("OLLAMA_MAX_QUEUE", "-1", "max_queue", 512),
        ("OLLAMA_KEEP_ALIVE", "soon", "keep_alive", 300 * SECOND),
        ("OLLAMA_LOAD_TIMEOUT", "later", "load_timeout", 600 * SECOND),
        ("VLLAMA_SLEEP_BUDGET", "half", "sleep_budget", 0.5),
        ("VLLAMA_SLEEP_BUDGET", "-1", "sleep_budget", 0.5),
    ],
)
def test_a_value_that_does_not_parse_falls_back_with_a_warning(
    variable: str, text: str, name: str, default: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert getattr(Settings.from_environment({variable: text}), name) == default
    assert f"{variable}={text} ignored" in caplog.text


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_environment({"OLLAMA_KEEP_ALIVE": " "}).keep_alive == 300 * SECOND


def test_what_the_caller_gives_wins_over_the_environment() -> None:
    settings = Settings.from_environment({"OLLAMA_KEEP_ALIVE": "1h"}, keep_alive=0, max_queue=None)
    assert (settings.keep_alive, settings.max_queue) == (0, 512)


def test_a_setting_that_does_not_exist_cannot_be_given() -> None:
    with pytest.raises(TypeError, match="no such setting: colour"):
        Settings.from_environment({}, colour="red")


# After Ollama's own table (envconfig/config_test.go).
@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", Address("http", "127.0.0.1", 11434)),
        ("1.2.3.4", Address("http", "1.2.3.4", 11434)),
        (":1234", Address("http", "127.0.0.1", 1234)),
        ("1.2.3.4:1234", Address("http", "1.2.3.4", 1234)),
        ("example.com", Address("http", "example.com", 11434)),
        ("example.com:1234", Address("http", "example.com", 1234)),
        (":0", Address("http", "127.0.0.1", 0)),
        (":66000", Address("http", "127.0.0.1", 11434)),
        (":-1", Address("http", "127.0.0.1", 11434)),
        (":port", Address("http", "127.0.0.1", 11434)),
        ("[::1]", Address("http", "::1", 11434)),
        ("[::]", Address("http", "::", 11434)),
        ("::1", Address("http", "::1", 11434)),
        ("[::1]:1337", Address("http", "::1", 1337)),
        (" 1.2.3.4 ", Address("http", "1.2.3.4", 11434)),
        ('"1.2.3.4"', Address("http", "1.2.3.4", 11434)),
        (' " 1.2.3.4 " ', Address("http", "1.2.3.4", 11434)),
        ("'1.2.3.4'", Address("http", "1.2.3.4", 11434)),
        ("http://1.2.3.4", Address("http", "1.2.3.4", 80)),
        ("http://1.2.3.4:4321", Address("http", "1.2.3.4", 4321)),
        ("https://1.2.3.4", Address("https", "1.2.3.4", 443)),
        ("https://1.2.3.4:4321", Address("https", "1.2.3.4", 4321)),
        ("https://example.com/ollama", Address("https", "example.com", 443, "ollama")),
        ("https://example.com/ollama/", Address("https", "example.com", 443, "ollama")),
    ],
)
def test_ollama_host_is_taken_apart_as_ollama_does(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["[::1", "[abc]", "[abc]:80", "a:b:c"])
def test_a_host_that_is_none_takes_the_default_with_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert Address.parse(text) == Address("http", "127.0.0.1", 11434)
    assert f"invalid host in OLLAMA_HOST={text}" in caplog.text


@given(st.one_of(st.text(), st.text("a1.:/[]@%?#℀", max_size=12)))
def test_any_text_gives_an_address(text: str) -> None:
    address = Address.parse(text)
    assert address.host
    assert 0 <= address.port < 65536


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("[::]:80", "http://[::1]:80"),
        ("::1", "http://[::1]:11434"),
        ("https://example.com/ollama/", "https://example.com:443/ollama"),
    ],
)
def test_a_client_reaches_the_address_by_a_url_that_connects(text: str, url: str) -> None:
    assert Address.parse(text).url == url


def test_every_duration_is_in_nanoseconds_behind_the_parser() -> None:
    durations = {row.name: row for row in SETTINGS if row.is_duration}
    assert durations.keys() > {"keep_alive", "load_timeout", "hang_timeout", "sleep_timeout"}
    assert all(row.parse("90s") == 90 * SECOND and isinstance(row.default, int) for row in durations.values())
    assert [row.name for row in SETTINGS if row.name.endswith("_timeout") and not row.is_duration] == []
