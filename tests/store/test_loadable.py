"""The check before weights are fetched: what is refused, why, and what is recommended instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from vllama.errors import SourceUnavailable
from vllama.installed.loading import Loading
from vllama.store import loadable
from vllama.store.catalogue import Catalogue
from vllama.store.family import parse_family
from vllama.store.loadable import check_loadable, nearest, why_not

VLLM = Loading(
    version="0.40.1",
    architectures=frozenset({"LlamaForCausalLM", "BertModel"}),
    removed={"OldForCausalLM": "0.10.2"},
    elsewhere={"BartModel": "https://example.com/bart"},
    suffixes=("ForCausalLM", "Model"),
    quantizations=frozenset({"awq", "gptq", "fp8", "inc", "old_fp8", "compressed-tensors"}),
    deprecated=frozenset({"old_fp8"}),
    orders_gptq=False,
    orders_compressed_tensors=False,
    transformers_text='("moonshine", "MoonshineForConditionalGeneration")',
)
EARLIER = Loading(quantizations=VLLM.quantizations)


def _llama(**quantization: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization}


def _compressed(actorder: Any) -> dict[str, Any]:
    groups = {"group_0": {"weights": {"num_bits": 4, "group_size": 128, "actorder": actorder}}}
    return _llama(quant_method="compressed-tensors", config_groups=groups)


GPTQ = _llama(quant_method="gptq", bits=4, group_size=128, desc_act=True)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (GPTQ, r"GPTQ weights have activation ordering \(desc_act\)"),
        (_compressed("group"), r"activation ordering \(actorder group\)"),
        (_compressed(True), "activation ordering"),
        ({"text_config": _compressed("dynamic")}, "actorder dynamic"),
        ({"compression_config": _compressed("group")["quantization_config"]}, "actorder group"),
        (_llama(quant_method="bitsandbytes"), "does not know the quantization 'bitsandbytes'"),
        (_llama(quant_method="old_fp8"), "only with --allow-deprecated-quantization"),
        ({"architectures": ["OldForCausalLM"]}, "OldForCausalLM was removed after vLLM 0.10.2"),
        ({"architectures": ["BartModel"]}, "needs the plugin at https://example.com/bart"),
        ({"architectures": ["MoondreamForCausalLM"]}, "neither vLLM nor transformers has its architecture Moondream"),
    ],
)
def test_what_vllm_s_files_rule_out_is_refused_with_the_cause(config: dict[str, Any], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(why_not(config, VLLM))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": None},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["LlamaModel"]},
        {"architectures": ["OldForCausalLM", "LlamaForCausalLM"]},
        {"architectures": ["MoonshineForConditionalGeneration"]},
        {"architectures": ["LlamaForCausalLM"], "quantization_config": None},
        {"architectures": ["LlamaForCausalLM"], "quantization_config": ["damaged"]},
        _llama(quant_method="awq"),
        _llama(quant_method="auto-round"),
        _llama(quant_method="compressed_tensors"),
        _llama(quant_method="gptq", group_size=128, desc_act=False),
        _llama(quant_method="gptq", group_size=-1, desc_act=True),
        _llama(quant_method="compressed-tensors", config_groups={"group_0": None}),
        _compressed(None),
        _compressed("weight"),
        _compressed("static"),
        _compressed(False),
    ],
)
def test_all_else_is_pulled(config: dict[str, Any]) -> None:
    assert why_not(config, VLLM) == ""


@pytest.mark.parametrize("config", [GPTQ, _compressed("group"), {"architectures": ["AnythingForCausalLM"]}])
def test_a_vllm_that_does_not_rule_it_out_gets_it(config: dict[str, Any]) -> None:
    assert why_not(config, EARLIER) == ""


def test_an_unknown_architecture_is_pulled_where_its_own_code_is_trusted() -> None:
    config = {"architectures": ["MoondreamForCausalLM"], "auto_map": {"AutoModelForCausalLM": "moondream.Moondream"}}
    assert why_not(config, VLLM, trusted=True) == ""
    assert "Moondream" in why_not(config, VLLM)


HOUSE = {
    "license": "MIT",
    "latest": "8b",
    "models": {
        "8b": {"int4": "acme/House-w4a16", "fp8": "acme/House-FP8", "bf16": "acme/House"},
        "70b": {"awq": "acme/House-70B-AWQ", "gptq-int4": "acme/House-70B-GPTQ", "bf16": "acme/House-70B"},
        "90b": {"unavailable": "it is too large"},
    },
}
KNOWN = Catalogue({}, {"house": parse_family("house", HOUSE, "here")})


@pytest.mark.parametrize(
    ("repository", "base", "name"),
    [
        ("acme/House-w4a16", "", "house:8b-q8_0 (acme/House-FP8)"),
        ("acme/House-FP8", "", "house:8b (acme/House-w4a16)"),
        ("Acme/house-70b-gptq", "", "house:70b (acme/House-70B-AWQ)"),
        ("somebody/House-GPTQ", "acme/House", "house:8b (acme/House-w4a16)"),
        ("somebody/Garden-GPTQ", "acme/Garden", "acme/Garden"),
        ("somebody/Garden-GPTQ", "", ""),
    ],
)
def test_the_nearest_alternative_is_the_same_model_in_the_closest_other_format(
    repository: str, base: str, name: str
) -> None:
    assert nearest(KNOWN, repository, base) == name


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_bytes(orjson.dumps(GPTQ))
    return path


def test_a_refusal_names_version_cause_and_alternative(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadable, "installed_loading", lambda: VLLM)
    told = r"^vLLM 0\.40\.1 cannot load 'acme/House-w4a16': its GPTQ .*; use house:8b-q8_0 \(acme/House-FP8\) instead"
    with pytest.raises(SourceUnavailable, match=told):
        check_loadable(settings, "acme/House-w4a16", "", KNOWN, trusted=False)


def test_nothing_is_refused_where_plugins_may_add_to_vllm(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadable, "installed_loading", lambda: VLLM)
    monkeypatch.setenv("VLLM_PLUGINS", "mine")
    check_loadable(settings, "acme/House-w4a16", "", KNOWN, trusted=False)


@pytest.mark.parametrize("content", [b"{not json}", b"[]", b"7"])
def test_damaged_settings_are_left_to_the_description_of_the_model(settings: Path, content: bytes) -> None:
    settings.write_bytes(content)
    check_loadable(settings, "acme/House-w4a16", "", KNOWN, trusted=False)


def test_settings_of_absurd_size_are_not_read(settings: Path) -> None:
    with settings.open("wb") as file:
        file.truncate(9 << 20)
    with pytest.raises(SourceUnavailable, match="more than 8 MiB"):
        check_loadable(settings, "acme/House-w4a16", "", KNOWN, trusted=False)
