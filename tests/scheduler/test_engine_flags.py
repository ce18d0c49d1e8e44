"""vLLM's command line: the user's flags, our defaults, and the flags that are nobody's to give."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vllama.errors import BadEngineFlags
from vllama.scheduler import engine_flags
from vllama.scheduler.engine_flags import (
    REFUSED,
    TORCH_ALLOCATOR,
    check_for_all,
    command_line,
    environment,
    refuse_ours,
)
from vllama.settings import Settings

SETTINGS = Settings.from_environment({}, models=Path("/models"))
NAMES = ["smollm2:135m", "registry.ollama.ai/library/smollm2:135m"]


PLANNED = ("--kv-cache-memory-bytes", "1024", "--max-model-len", "-1")


def line(*user_flags: str, settings: Settings = SETTINGS, on_cpu: bool = True, compiled: bool = False) -> list[str]:
    return command_line(
        Path("/snapshot"),
        NAMES,
        Path("/run/1.sock"),
        settings,
        user_flags=user_flags,
        on_cpu=on_cpu,
        compiled=compiled,
        planned=PLANNED,
    )


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Return what argparse would take: the value of the last such flag."""
    return next((arguments[at + 1] for at in reversed(range(len(arguments))) if arguments[at] == flag), None)


def test_the_model_its_socket_and_its_names_come_first() -> None:
    assert line()[:6] == ["/snapshot", "--uds", "/run/1.sock", "--served-model-name", *NAMES]


def test_the_user_s_flags_come_last_in_their_order() -> None:
    assert line("--seed", "1", "-tp", "2", "--seed=3")[-5:] == ["--seed", "1", "-tp", "2", "--seed=3"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--disable-uvicorn-access-log", None),
        ("--allowed-media-domains", "no remote media"),
        ("--scheduling-policy", "priority"),
        ("--enable-prompt-tokens-details", None),
        ("--override-generation-config", '{"max_new_tokens":null}'),
        ("--max-model-len", "-1"),
        ("--enforce-eager", None),
        ("--compilation-config", '{"custom_ops":["none"]}'),
        ("--kv-cache-memory-bytes", "1024"),
        ("--mm-processor-cache-gb", "1"),
    ],
)
def test_defaults_on_a_cpu(flag: str, value: str | None) -> None:
    arguments = line()
    assert flag in arguments
    assert value is None or value_of(flag, arguments) == value


def test_on_a_gpu_vllm_compiles() -> None:
    assert not {"--enforce-eager", "--compilation-config"} & set(line(on_cpu=False))


def test_compiled_on_a_cpu_leaves_compilation_to_vllm() -> None:
    assert not {"--enforce-eager", "--compilation-config"} & set(line(compiled=True))


def test_settings_become_flags() -> None:
    assert value_of("--max-num-seqs", line(settings=replace(SETTINGS, num_parallel=7))) == "7"


def test_without_num_parallel_vllm_decides() -> None:
    assert "--max-num-seqs" not in line()


@pytest.mark.parametrize(
    ("given", "dropped"),
    [
        (["--max-model-len", "4096"], "--max-model-len"),
        (["--max-model-len=4096"], "--max-model-len"),
        (["--max_model_len", "4096"], "--max-model-len"),
        (["--max-model", "4096"], "--max-model-len"),
        (["--max-num-seqs", "256"], "--max-num-seqs"),
        (["--kv-cache-memory-bytes", "4G"], "--kv-cache-memory-bytes"),
        (["--no-enforce-eager"], "--enforce-eager"),
        (["-O3"], "--enforce-eager"),
        (["-O", "3"], "--enforce-eager"),
        (["-O=3"], "--enforce-eager"),
        (["--optimization-level", "3"], "--enforce-eager"),
        (["--compilation-config", '{"mode":3}'], "--compilation-config"),
        (["--compilation-config.mode", "3"], "--compilation-config"),
        (["-cc", '{"mode":3}'], "--compilation-config"),
        (["-cc.mode=3"], "--compilation-config"),
        (["--allowed-media-domains", "example.org"], "--allowed-media-domains"),
        (["--no-enable-prompt-tokens-details"], "--enable-prompt-tokens-details"),
        (["--override-generation-config.temperature", "0"], "--override-generation-config"),
    ],
)
def test_a_flag_of_the_user_takes_the_place_of_our_default(given: list[str], dropped: str) -> None:
    settings = replace(SETTINGS, num_parallel=4)
    assert dropped in line(settings=settings)
    assert dropped not in line(*given, settings=settings)[: -len(given)]


@pytest.mark.parametrize("given", [["--seed", "1"], ["--max-num-batched-tokens", "8"], ["--kv-cache-dtype", "fp8"]])
def test_other_flags_of_the_user_leave_our_defaults(given: list[str]) -> None:
    assert [argument.partition("=")[0] for argument in line(*given)] == [*line(), *given]


@pytest.mark.parametrize("flag", REFUSED)
def test_flags_that_cut_the_gateway_off_are_refused(flag: str) -> None:
    with pytest.raises(BadEngineFlags, match=f"^{flag} "):
        refuse_ours(["--seed", "1", flag, "x"])


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("--port=9999", "--port"),
        ("--served_model_name=x", "--served-model-name"),
        ("--served_mod", "--served-model-name"),
        ("--por", "--port"),
        ("--ud=/tmp/x", "--uds"),
        ("--api-k", "--api-key"),
        ("--api_k=secret", "--api-key"),
        ("--ssl-keyf", "--ssl-keyfile"),
        ("--root", "--root-path"),
        ("--headl", "--headless"),
        ("--host.x", "--host"),
        ("--uds.x=1", "--uds"),
        ("--conf=x.yaml", "--config"),
    ],
)
def test_they_are_refused_however_vllm_would_let_them_be_spelled(spelled: str, meant: str) -> None:
    with pytest.raises(BadEngineFlags, match=meant):
        refuse_ours([spelled])


@pytest.mark.parametrize("flag", ["--trust-remote-code", "--trust_remote_code", "--trust"])
def test_trust_in_code_is_given_to_one_model_and_not_to_all(flag: str) -> None:
    with pytest.raises(
        BadEngineFlags, match="give it to the model that you trust: vllama pull --trust-remote-code NAME"
    ):
        check_for_all(["--seed", "1", flag])
    assert line("--trust-remote-code")[-1] == "--trust-remote-code", "a manifest's flags go to its worker"
    check_for_all(["--no-trust-remote-code", "--seed", "1"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--model-impl", "auto"],
        ["--api-server-count", "4"],
        ["--grpc-port", "1"],
        ["--port-of-another=1"],
        ["--chat-template", "port"],
        ["-tp", "2"],
        ["-O3"],
        ["--seed", "-1"],
        ["--hf-overrides.port", "1"],
        ['--hf-overrides={"--port":1}'],
    ],
)
def test_other_flags_are_not_refused(flags: list[str]) -> None:
    refuse_ours(flags)


def test_the_flags_of_a_manifest_are_no_way_around() -> None:
    with pytest.raises(BadEngineFlags, match="--uds is set by vllama"):
        line("--uds", "/tmp/elsewhere")


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="\x00"), max_size=12)))
def test_flags_that_nobody_thought_of_are_passed_on_as_they_are(flags: list[str]) -> None:
    try:
        refuse_ours(flags)
    except BadEngineFlags:
        return
    assume(engine_flags.without_token(flags) == (tuple(flags), ""))
    assert not flags or line(*flags)[-len(flags) :] == flags


def test_a_worker_is_offline_and_has_our_plugin() -> None:
    made = environment({"HF_HUB_OFFLINE": "0", "PATH": "/bin"}, Path("/run"), on_cpu=False)
    assert made["HF_HUB_OFFLINE"] == made["TRANSFORMERS_OFFLINE"] == made["VLLM_NO_USAGE_STATS"] == "1"
    assert made["VLLM_PLUGINS"] == "vllama"
    assert made["VLLM_RPC_BASE_PATH"] == "/run"
    assert made["PATH"] == "/bin"


def test_plugins_of_the_user_stay_beside_ours() -> None:
    made = environment({"VLLM_PLUGINS": "lora,vllama,mine"}, Path("/run"), on_cpu=False)
    assert made["VLLM_PLUGINS"] == "vllama,lora,mine"


def test_variables_that_cut_the_gateway_off_are_taken_out() -> None:
    made = environment({"VLLM_API_KEY": "s", "VLLM_USE_RUST_FRONTEND": "1"}, Path("/run"), on_cpu=False)
    assert not {"VLLM_API_KEY", "VLLM_USE_RUST_FRONTEND"} & made.keys()


def test_on_a_cpu_all_cores_work_unless_the_user_bound_them() -> None:
    assert environment({}, Path("/run"), on_cpu=True)["VLLM_CPU_OMP_THREADS_BIND"]
    bound = {"VLLM_CPU_OMP_THREADS_BIND": "0-1"}
    assert environment(bound, Path("/run"), on_cpu=True)["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment({}, Path("/run"), on_cpu=False)


def test_engines_on_the_same_cores_do_not_wait_long_for_each_others_threads() -> None:
    assert environment({}, Path("/run"), on_cpu=True)["GOMP_SPINCOUNT"] == "100000"
    assert environment({"GOMP_SPINCOUNT": "1"}, Path("/run"), on_cpu=True)["GOMP_SPINCOUNT"] == "1"
    assert "GOMP_SPINCOUNT" not in environment({"OMP_WAIT_POLICY": "active"}, Path("/run"), on_cpu=True)
    assert "GOMP_SPINCOUNT" not in environment({}, Path("/run"), on_cpu=False)


def test_on_a_gpu_several_threads_pin_host_memory_unless_the_user_has_set_torchs_allocator() -> None:
    setting = environment({}, Path("/run"), on_cpu=False)[TORCH_ALLOCATOR[0]]
    threads = int(setting.rpartition(":")[2])
    assert setting.startswith("pinned_use_cuda_host_register:True,")
    assert threads & (threads - 1) == 0
    assert threads <= len(os.sched_getaffinity(0))
    for name in TORCH_ALLOCATOR:
        said = {name: "max_split_size_mb:64"}
        assert {
            key: value for key, value in environment(said, Path("/run"), on_cpu=False).items() if key in TORCH_ALLOCATOR
        } == said
    assert TORCH_ALLOCATOR[0] not in environment({}, Path("/run"), on_cpu=True)


def test_the_json_of_our_defaults_is_json() -> None:
    assert json.loads(value_of("--compilation-config", line()) or "") == {"custom_ops": ["none"]}
    assert json.loads(value_of("--override-generation-config", line()) or "") == {"max_new_tokens": None}


def test_vllm_may_fetch_nothing_unless_the_user_names_who_from() -> None:
    assert value_of("--allowed-media-domains", line()) == "no remote media"
    assert value_of("--allowed-media-domains", line("--allowed-media-domains", "example.com")) == "example.com"


def test_images_have_a_limit_that_the_user_s_own_variable_replaces() -> None:
    def limit(base: dict[str, str]) -> str:
        return environment(base, Path("/run/x"), on_cpu=False)["VLLM_MAX_IMAGE_PIXELS"]

    assert limit({}) == "67108864"
    assert limit({"VLLM_MAX_IMAGE_PIXELS": "1000"}) == "1000"


def test_requests_may_have_any_number_of_stop_strings_unless_the_user_limits_them() -> None:
    def limit(base: dict[str, str]) -> str:
        return environment(base, Path("/run/x"), on_cpu=False)["VLLM_MAX_STOP_STRINGS"]

    assert int(limit({})) > 1_000_000
    assert limit({"VLLM_MAX_STOP_STRINGS": "9"}) == "9"


def test_ranks_on_a_cpu_divide_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {4, 1, 7, 2})
    assert engine_flags.cores_of_ranks(1) == "1,2,4,7"
    assert engine_flags.cores_of_ranks(2) == "1,2|4,7"
    assert engine_flags.cores_of_ranks(3) == "1|2|4"
    assert engine_flags.cores_of_ranks(5) == "nobind"


def test_variables_that_keep_nvlink_multicast_off_reach_the_worker() -> None:
    off = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
    assert off.items() <= environment(off, Path("/run"), on_cpu=False).items()


def test_only_a_worker_on_a_gpu_is_started_so_that_it_can_sleep() -> None:
    assert not engine_flags.sleeps(line())
    assert engine_flags.sleeps(line(on_cpu=False))
    assert not engine_flags.sleeps(line("--no-enable-sleep-mode", on_cpu=False))


def test_the_parts_of_a_worker_meet_on_this_machine_unless_the_user_says_where() -> None:
    made = environment({}, Path("/run"), on_cpu=False)
    assert (made["VLLM_HOST_IP"], made["GLOO_SOCKET_IFNAME"]) == ("127.0.0.1", "lo")
    said = {"VLLM_HOST_IP": "10.0.0.7", "GLOO_SOCKET_IFNAME": "eth1"}
    assert environment(said, Path("/run"), on_cpu=False).items() >= said.items()


@pytest.mark.parametrize("flag", ["--distributed-executor-backend=ray", "--nnodes", "--data-parallel-address=10.0.0.7"])
def test_a_worker_on_several_machines_tells_its_own_address(flag: str) -> None:
    made = environment({}, Path("/run"), on_cpu=False, user_flags=[flag])
    assert not {"VLLM_HOST_IP", "GLOO_SOCKET_IFNAME"} & made.keys()


@pytest.mark.parametrize("flags", [["--hf-token", "hf_secret"], ["--hf-token=hf_secret"], ["--hf-tok=hf_secret"]])
def test_the_token_of_the_hub_is_not_on_a_workers_command_line(flags: list[str], tmp_path: Path) -> None:
    given = ["--max-num-seqs", "4", *flags, "--seed", "1"]
    assert engine_flags.without_token(given) == (("--max-num-seqs", "4", "--seed", "1"), "hf_secret")
    line = engine_flags.command_line(
        tmp_path, ["m"], tmp_path / "s", Settings.from_environment({}), user_flags=given, on_cpu=True, compiled=False
    )
    assert "hf_secret" not in " ".join(line)


def test_a_token_without_a_value_takes_no_other_flag() -> None:
    assert engine_flags.without_token(["--hf-token", "--seed", "1"]) == (("--seed", "1"), "")
    assert engine_flags.without_token(["--hf", "x"]) == (("--hf", "x"), "")  # ambiguous: for vLLM to refuse


def test_workers_which_are_offline_do_not_get_the_token_of_the_hub(tmp_path: Path) -> None:
    base = {"HF_TOKEN": "hf_secret", "HUGGING_FACE_HUB_TOKEN": "hf_secret", "PATH": "/bin"}
    assert "hf_secret" not in engine_flags.environment(base, tmp_path, on_cpu=True).values()
