"""What a model is served with: chosen parsers, the user's flags over them, and the capabilities that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_adapter import write_adapter
from tiny_snapshot import make_manifest, write_snapshot

from vllama.errors import ManifestCorrupt, RequestError, Unsupported
from vllama.installed.registry import InstalledVllm
from vllama.names import ModelName
from vllama.protocol.profile import AdapterPart
from vllama.scheduler.serving import ServedModel, Serving
from vllama.store.manifest import Adapter, Manifest, ManifestFile
from vllama.store.parsers import ParserChoice

INSTALLED = InstalledVllm(
    tool_parsers=frozenset({"hermes", "mistral", "xlam"}),
    reasoning_parsers=frozenset({"qwen3", "deepseek_r1", "step3"}),
    multimodal=frozenset({"LlavaForConditionalGeneration"}),
)
TOOLS = "{% if tools %}<tool_call></tool_call>{% endif %}"
THINKING_TOOLS = TOOLS + "{% if enable_thinking %}<think></think>{% endif %}"


def plan(
    tmp_path: Path, template: str, *flags: str, manifest_flags: tuple[str, ...] = (), **changes: Any
) -> ServedModel:
    snapshot = write_snapshot(tmp_path / "snapshot", files={"chat_template.jinja": template}, **changes)
    return Serving(flags, INSTALLED).served(make_manifest(snapshot=snapshot, engine_flags=manifest_flags))


def test_chosen_parsers_become_flags_and_capabilities(tmp_path: Path) -> None:
    assert plan(tmp_path, THINKING_TOOLS) == ServedModel(
        capabilities=("completion", "tools", "thinking"),
        tool_parser=ParserChoice("hermes", "<tool_call>"),
        reasoning_parser=ParserChoice("qwen3", "enable_thinking"),
        flags=("--tool-call-parser", "hermes", "--enable-auto-tool-choice", "--reasoning-parser", "qwen3"),
    )


def test_a_model_without_either_is_served_as_it_is(tmp_path: Path) -> None:
    assert plan(tmp_path, "plain") == ServedModel(("completion",), ParserChoice(), ParserChoice(), ())


@pytest.mark.parametrize(
    "flags",
    [
        ("--tool-call-parser", "mistral"),
        ("--tool-call-parser=mistral",),
        ("--tool_call_parser", "mistral"),
        ("--tool-call-parser", "hermes", "--tool-call-parser", "mistral"),
    ],
)
def test_the_users_tool_parser_wins_over_the_chosen_one(tmp_path: Path, flags: tuple[str, ...]) -> None:
    found = plan(tmp_path, TOOLS, *flags)
    assert found.tool_parser == ParserChoice("mistral", "--tool-call-parser")
    assert found.flags == ("--enable-auto-tool-choice",)
    assert found.capabilities == ("completion", "tools")


def test_a_parser_given_by_flag_makes_a_plain_model_capable(tmp_path: Path) -> None:
    found = plan(
        tmp_path, "plain", "--enable-auto-tool-choice", "--tool-call-parser", "xlam", "--reasoning-parser", "step3"
    )
    assert found.capabilities == ("completion", "tools", "thinking")
    assert found.flags == ()


def test_the_users_flags_win_over_those_of_the_models_manifest(tmp_path: Path) -> None:
    found = plan(tmp_path, TOOLS, "--reasoning-parser", "qwen3", manifest_flags=("--reasoning-parser", "deepseek_r1"))
    assert found.reasoning_parser.name == "qwen3"


def test_tools_can_be_switched_off(tmp_path: Path) -> None:
    found = plan(tmp_path, THINKING_TOOLS, "--no-enable-auto-tool-choice")
    assert found.capabilities == ("completion", "thinking")
    assert found.flags == ("--reasoning-parser", "qwen3")


@pytest.mark.parametrize("value", ["nonsense", ""])
def test_a_parser_that_vllm_lacks_is_claimed_by_no_model_and_an_empty_name_means_none(
    tmp_path: Path, value: str
) -> None:
    found = plan(tmp_path, THINKING_TOOLS, f"--reasoning-parser={value}", "--tool-call-parser", value)
    assert found.capabilities == ("completion",)
    assert found.flags == ()


def test_a_parser_of_the_users_own_plugin_is_believed(tmp_path: Path) -> None:
    found = plan(tmp_path, TOOLS, "--reasoning-parser", "mine", "--reasoning-parser-plugin", "/etc/mine.py")
    assert found.reasoning_parser == ParserChoice("mine", "--reasoning-parser")
    assert "thinking" in found.capabilities


def test_our_own_parsers_bring_the_plugin_that_has_them(tmp_path: Path) -> None:
    installed = InstalledVllm(INSTALLED.tool_parsers | {"bare_json"}, INSTALLED.reasoning_parsers)
    template = "{% for tool in tools %}{% endfor %}" + '{"name": "{{ name }}", "arguments": {{ arguments }}}'
    snapshot = write_snapshot(tmp_path / "snapshot", files={"chat_template.jinja": template})
    found = Serving((), installed).served(make_manifest(snapshot=snapshot))
    assert found.flags[:3] == ("--tool-call-parser", "bare_json", "--enable-auto-tool-choice")
    assert found.flags[3] == "--tool-parser-plugin"
    assert Path(found.flags[4]).name == "plain_parsers.py"


def test_an_embedding_model_gets_no_parsers(tmp_path: Path) -> None:
    found = plan(tmp_path, THINKING_TOOLS, config={"architectures": ["BertModel"]})
    assert found == ServedModel(("embedding",), ParserChoice(), ParserChoice(), ())


def test_a_model_that_writes_has_another_engine_for_its_vectors(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "snapshot", files={"chat_template.jinja": TOOLS})
    serving, manifest = Serving((), INSTALLED), make_manifest(snapshot=snapshot)
    embedder = serving.embedder(manifest)
    assert serving.embedder(manifest) is embedder
    assert serving.engine_of(embedder) != serving.engine_of(manifest)
    assert serving.served(embedder).capabilities == ("embedding",)
    assert serving.flags(embedder, 0) == ["--runner", "pooling", "--convert", "embed"]
    assert serving.served(manifest).capabilities == ("completion", "tools")
    assert embedder.digest == manifest.digest


def test_an_embedding_model_is_its_own_embedder(tmp_path: Path) -> None:
    config = {"architectures": ["BertModel"], "model_type": "bert"}
    manifest = make_manifest(snapshot=write_snapshot(tmp_path / "snapshot", config=config))
    assert Serving((), INSTALLED).embedder(manifest) is manifest


def test_the_description_tells_the_parsers_with_their_reasons(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "snapshot", files={"chat_template.jinja": THINKING_TOOLS})
    found = Serving(("--reasoning-parser=deepseek_r1",), INSTALLED).describe(make_manifest(snapshot=snapshot))
    assert found.capabilities == ("completion", "tools", "thinking")
    assert found.model_info["vllama.tool_parser"] == "hermes (<tool_call>)"
    assert found.model_info["vllama.reasoning_parser"] == "deepseek_r1 (--reasoning-parser)"


def test_a_model_without_parsers_has_no_keys_for_them(tmp_path: Path) -> None:
    found = Serving((), INSTALLED).describe(make_manifest(snapshot=write_snapshot(tmp_path / "snapshot")))
    assert not [key for key in found.model_info if key.startswith("vllama.")]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"added_tokens_decoder": {"7": {"content": "[TOOL_CALLS]"}}}},
        {"tokenizer_config.json": {}, "tokenizer.json": {"added_tokens": [{"id": 7, "content": "[TOOL_CALLS]"}]}},
    ],
    ids=["tokenizer_config.json", "tokenizer.json"],
)
def test_tokens_of_their_own_are_found_in_either_file(tmp_path: Path, files: Mapping[str, Any]) -> None:
    template = {"chat_template.jinja": "{% if tools %}[TOOL_CALLS]{% endif %}"}
    snapshot = write_snapshot(tmp_path / "snapshot", files={**files, **template})
    assert Serving((), INSTALLED).served(make_manifest(snapshot=snapshot)).tool_parser.name == "mistral"


def test_the_template_for_tools_tells_where_there_are_several(tmp_path: Path) -> None:
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": TOOLS}]
    snapshot = write_snapshot(
        tmp_path / "snapshot", files={"chat_template.jinja": None, "tokenizer_config.json": {"chat_template": several}}
    )
    found = Serving((), INSTALLED).describe(make_manifest(snapshot=snapshot))
    assert (found.template, found.capabilities) == ("plain", ("completion", "tools"))


TUNED = {"model.layers.0.self_attn.q_proj": (8, 8)}


def with_adapter(tmp_path: Path, manifest: Manifest, *, seed: int = 0) -> Manifest:
    place = write_adapter(tmp_path / f"adapter-{seed}", TUNED, rank=4, seed=seed)
    files = tuple(ManifestFile(path.name, path.stat().st_size, f"{seed:064}") for path in sorted(place.iterdir()))
    return replace(manifest, adapter=Adapter(place, files, 4))


def test_a_model_with_an_adapter_has_the_engine_of_its_base(tmp_path: Path) -> None:
    base = make_manifest(snapshot=write_snapshot(tmp_path / "snapshot"))
    serving = Serving((), INSTALLED)
    tuned = with_adapter(tmp_path, base)
    assert tuned.digest != base.digest
    assert serving.engine_of(tuned) == serving.engine_of(base)


def test_a_worker_is_told_of_the_adapter_under_a_number_that_no_other_has(tmp_path: Path) -> None:
    base = make_manifest(snapshot=write_snapshot(tmp_path / "snapshot"))
    serving = Serving((), INSTALLED)
    first, second = (with_adapter(tmp_path, base, seed=seed) for seed in (1, 2))
    told = [serving.profile(model).adapter for model in (first, second, first, base)]
    assert first.adapter
    assert told[0] == AdapterPart(1, first.adapter.digest, str(first.adapter.snapshot)) == told[2]
    assert told[1]
    assert (told[1].number, told[3]) == (2, None)


def test_an_adapter_that_cannot_be_served_is_refused_when_it_is_asked(tmp_path: Path) -> None:
    tuned = with_adapter(tmp_path, make_manifest(snapshot=write_snapshot(tmp_path / "snapshot")))
    serving = Serving(("--no-enable-lora",), INSTALLED)
    with pytest.raises(RequestError, match="--no-enable-lora"):
        serving.profile(tuned)


def test_a_model_with_an_adapter_makes_no_vectors_and_its_adapter_takes_no_room_where_its_base_does(
    tmp_path: Path,
) -> None:
    base = make_manifest(snapshot=write_snapshot(tmp_path / "snapshot"))
    tuned = with_adapter(tmp_path, base)
    serving = Serving((), INSTALLED)
    with pytest.raises(Unsupported, match="does not support embeddings, because it has an adapter"):
        serving.embedder(tuned)
    assert serving.adapter_rank(serving.embedder(base), [base, tuned]) == 0


def test_the_description_tells_of_the_adapter(tmp_path: Path) -> None:
    tuned = with_adapter(tmp_path, make_manifest(snapshot=write_snapshot(tmp_path / "snapshot")))
    assert tuned.adapter
    told = Serving((), INSTALLED).describe(tuned).model_info["vllama.adapter"]
    assert told == f"LoRA, rank 4, sha256:{tuned.adapter.digest[:12]}"


def sees(tmp_path: Path, *flags: str, architecture: str = "LlavaForConditionalGeneration", **config: Any) -> bool:
    tower = {"architectures": [architecture], "vision_config": {"hidden_size": 8}, **config}
    return "vision" in plan(tmp_path, TOOLS, *flags, config=tower).capabilities


def test_a_model_with_a_vision_tower_sees_where_vllm_serves_its_architecture_so(tmp_path: Path) -> None:
    tower = {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {"hidden_size": 8}}
    assert plan(tmp_path / "a", TOOLS, config=tower).capabilities == ("completion", "vision", "tools")
    assert not sees(tmp_path / "b", architecture="LlamaForCausalLM")
    assert not sees(tmp_path / "c", vision_config=None)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--language-model-only",), False),
        (("--limit-mm-per-prompt", '{"image": 0}'), False),
        (('--limit-mm-per-prompt={"image":0}',), False),
        (("--limit-mm-per-prompt", '{"image": 2}'), True),
        (("--limit-mm-per-prompt", "nonsense"), True),  # vLLM will not start with it
    ],
)
def test_flags_that_leave_no_images_take_the_capability_away(
    tmp_path: Path, flags: tuple[str, ...], expected: bool
) -> None:
    assert sees(tmp_path, *flags) is expected


def test_files_are_read_once_and_looked_at_again_only_where_that_is_asked_for(tmp_path: Path) -> None:
    base = make_manifest(snapshot=write_snapshot(tmp_path / "snapshot", files={"chat_template.jinja": TOOLS}))
    serving = Serving((), INSTALLED)
    engine, profile = serving.engine_of(base), serving.profile(base)
    assert "tools" in serving.served(base).capabilities
    (base.snapshot / "chat_template.jinja").write_text("plain")

    assert "tools" in serving.served(base).capabilities
    assert "tools" not in serving.describe(base).capabilities, "clients are told what is there now"
    assert (serving.engine_of(base), serving.profile(base)) == (engine, profile)
    assert "tools" not in serving.served(base, recheck=True).capabilities
    assert serving.engine_of(base) != engine
    assert "tools" not in serving.profile(base).capabilities

    (base.snapshot / "config.json").unlink()
    assert serving.profile_json(base) == serving.profile(base).to_json()
    with pytest.raises(ManifestCorrupt, match=r"config\.json is missing"):
        serving.served(base, recheck=True)


def test_a_manifest_of_other_content_or_another_name_has_a_profile_of_its_own(tmp_path: Path) -> None:
    base = make_manifest(snapshot=write_snapshot(tmp_path / "snapshot"))
    serving = Serving((), INSTALLED)
    copy, changed = replace(base, name=ModelName.parse("copy")), replace(base, system="Be brief.")
    told = [serving.profile(model) for model in (base, copy, changed, base)]
    assert [profile.full_name for profile in told] == [model.name.full for model in (base, copy, changed, base)]
    assert [profile.system for profile in told] == ["", "", "Be brief.", ""]


def test_only_the_manifests_that_were_used_last_are_kept(tmp_path: Path) -> None:
    base = make_manifest(snapshot=write_snapshot(tmp_path / "snapshot"))
    models = [replace(base, name=ModelName.parse(f"m{number}")) for number in range(300)]
    serving = Serving((), INSTALLED)
    first = serving.profile(models[0])
    for model in models[1:]:
        serving.profile(model)
        assert serving.profile(models[0]) is first, "it is used all the time"
    second = serving.profile(models[1])
    (base.snapshot / "config.json").unlink()
    assert serving.profile(models[1]) is second
    with pytest.raises(ManifestCorrupt):
        serving.profile(models[2])


def test_requests_have_priorities_unless_a_flag_states_another_order(tmp_path: Path) -> None:
    manifest = make_manifest(snapshot=tmp_path)
    stated = make_manifest(snapshot=tmp_path, engine_flags=("--scheduling-policy", "fcfs"))
    assert Serving((), INSTALLED).has_priorities(manifest)
    assert not Serving((), INSTALLED).has_priorities(stated)
    assert not Serving(("--scheduling_policy=priority",), INSTALLED).has_priorities(manifest)
