"""`options`, row by row of the contract's table (§2.10)."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.errors import OptionTypeError
from vllama.ollama import options
from vllama.ollama.options import DEFAULTS, TYPES, Sampling, check, resolve

# option, Ollama's default, a value as a client sends it, the value in force
EFFECTIVE: list[tuple[str, Any, Any, Any]] = [
    ("temperature", 0.8, 0, 0.0),
    ("top_k", 40, 20, 20),
    ("top_p", 0.9, 0.5, 0.5),
    ("min_p", 0.0, 0.05, 0.05),
    ("repeat_penalty", 1.0, 1.1, 1.1),
    ("repeat_last_n", 64, -1, -1),
    ("presence_penalty", 0.0, 1, 1.0),
    ("frequency_penalty", 0.0, -0.5, -0.5),
    ("seed", -1, 42, 42),
    ("num_predict", -1, 128, 128),
    ("num_ctx", 0, 2048, 2048),
    ("num_keep", 4, -1, -1),
    ("stop", (), ["\n", "user:"], ("\n", "user:")),
]
WITHOUT_EFFECT: list[tuple[str, Any]] = [
    ("typical_p", 0.7),
    ("num_batch", 512),
    ("num_gpu", -1),
    ("main_gpu", 0),
    ("use_mmap", True),
    ("num_thread", 8),
    ("draft_num_predict", 4),
]
REMOVED = [
    "mirostat", "mirostat_tau", "mirostat_eta", "tfs_z", "penalize_newline", "numa", "low_vram", "f16_kv", "logits_all",
    "vocab_only", "use_mlock", "embedding_only",
]  # fmt: skip
ELSEWHERE = ["new_topic_penalty", "numCtx", "useMLock", "keep_alive", "format", "think", "Temperature"]

INTEGERS = ["top_k", "repeat_last_n", "seed", "num_predict", "num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu",
            "num_thread", "draft_num_predict"]  # fmt: skip
FLOATS = ["temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"]
BOOLEANS = ["use_mmap"]
ARRAYS = ["stop"]


@pytest.fixture(autouse=True)
def nothing_mentioned_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_mentioned", set())


def test_the_tables_of_this_file_are_complete() -> None:
    effective, ignored = {row[0] for row in EFFECTIVE}, {name for name, _ in WITHOUT_EFFECT}
    assert effective == {field.name for field in fields(Sampling)} == DEFAULTS.keys()
    assert effective | ignored == TYPES.keys()
    assert sorted(TYPES) == sorted([*INTEGERS, *FLOATS, *BOOLEANS, *ARRAYS])


@pytest.mark.parametrize(("name", "default"), [(name, default) for name, default, _, _ in EFFECTIVE])
def test_an_option_that_nobody_sets_has_ollamas_default(name: str, default: object) -> None:
    assert asdict(resolve({}))[name] == default


@pytest.mark.parametrize(("name", "sent", "value"), [(name, sent, value) for name, _, sent, value in EFFECTIVE])
def test_an_option_with_an_effect_becomes_a_sampling_value(name: str, sent: object, value: object) -> None:
    sampling = resolve(check({name: sent}))
    assert getattr(sampling, name) == value
    assert type(getattr(sampling, name)) is type(value)
    assert {**asdict(sampling), name: None} == {**asdict(resolve({})), name: None}  # and changes no other


@pytest.mark.parametrize(("name", "value"), WITHOUT_EFFECT)
def test_an_option_of_ollamas_own_engine_is_accepted_without_effect(name: str, value: object) -> None:
    assert check({name: value}) == {}


@pytest.mark.parametrize("name", REMOVED + ELSEWHERE)
def test_a_name_that_is_no_option_is_ignored_and_mentioned_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert check({name: "anything"}) == {}
        assert check({name: 5}) == {}
    assert [record.getMessage() for record in caplog.records] == [f"option '{name}' has no effect"]


def test_typical_sampling_is_mentioned_only_where_it_would_do_something(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check({"typical_p": 1})
        assert not caplog.records
        check({"typical_p": 0.5})
    assert [record.getMessage() for record in caplog.records] == ["option 'typical_p' has no effect"]


def test_the_log_is_not_filled_by_made_up_names(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check({f"made_up_{number}": 1 for number in range(1500)})
        check({"x" * 5000: 1})
    assert len(caplog.records) == 1000
    assert max(len(record.getMessage()) for record in caplog.records) < 150


@pytest.mark.parametrize("name", sorted(TYPES))
def test_null_counts_as_absent(name: str) -> None:
    assert check({name: None}) == {}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", ["5", "", True, False, [5], {}])
def test_an_integer_must_be_a_number(name: str, value: object) -> None:
    with pytest.raises(OptionTypeError) as refused:
        check({name: value})
    assert str(refused.value) == f'option "{name}" must be of type integer'


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["hot", "0.5", True, [0.5], {}])
def test_a_float_must_be_a_number(name: str, value: object) -> None:
    with pytest.raises(OptionTypeError) as refused:
        check({name: value})
    assert str(refused.value) == f'option "{name}" must be of type float32'


@pytest.mark.parametrize("name", BOOLEANS)
@pytest.mark.parametrize("value", ["true", 1, 0.0, [], {}])
def test_a_boolean_must_be_one(name: str, value: object) -> None:
    with pytest.raises(OptionTypeError) as refused:
        check({name: value})
    assert str(refused.value) == f'option "{name}" must be of type boolean'


@pytest.mark.parametrize("value", [5, True, {}, 1.5])
def test_stop_must_be_a_list(value: object) -> None:
    with pytest.raises(OptionTypeError) as refused:
        check({"stop": value})
    assert str(refused.value) == 'option "stop" must be of type array'


@pytest.mark.parametrize("value", [[5], ["a", None], [["a"]]])
def test_stop_must_be_a_list_of_strings(value: object) -> None:
    with pytest.raises(OptionTypeError) as refused:
        check({"stop": value})
    assert str(refused.value) == 'option "stop" must be of an array of strings'


@pytest.mark.parametrize(
    ("sent", "kept"), [("\n", ("\n",)), ("", ()), ([], ()), (["", "a", ""], ("a",)), (["a", "a"], ("a", "a"))]
)
def test_stop_may_be_a_bare_string_and_empty_strings_are_dropped(sent: object, kept: tuple[str, ...]) -> None:
    assert check({"stop": sent}) == {"stop": kept}


@pytest.mark.parametrize(("sent", "kept"), [(7.9, 7), (-1.5, -1), (0.5, 0), (1e300, 2**63 - 1), (-(10**30), -(2**63))])
def test_an_integer_is_cut_to_64_bits_without_its_fraction(sent: float, kept: int) -> None:
    assert check({"num_predict": sent}) == {"num_predict": kept}


def test_the_request_wins_over_the_models_parameters_over_its_generation_config_over_the_table() -> None:
    sampling = resolve(
        check({"temperature": 0.1}),
        {"temperature": 0.2, "top_k": 2, "stop": ("<|im_end|>",)},
        {"temperature": 0.3, "top_k": 3, "top_p": 0.3},
    )
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.1, 2, 0.3, 0.0)
    assert sampling.stop == ("<|im_end|>",)


def test_stop_strings_of_the_request_replace_the_models() -> None:
    assert resolve(check({"stop": ["x"]}), {"stop": ("a", "b")}).stop == ("x",)
    assert resolve(check({"stop": []}), {"stop": ("a", "b")}).stop == ()


@given(
    st.dictionaries(
        st.sampled_from([*sorted(TYPES), "mirostat"]),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
        | st.lists(st.text() | st.integers(), max_size=3),
    )
)  # fmt: skip
def test_any_options_are_sampling_values_or_an_error_for_the_client(sent: dict[str, Any]) -> None:
    try:
        sampling = resolve(check(sent))
    except OptionTypeError:
        return
    for name, default in DEFAULTS.items():
        assert type(getattr(sampling, name)) is type(default)
