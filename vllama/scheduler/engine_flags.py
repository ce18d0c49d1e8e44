"""vLLM's command line for one worker: what the user passed, over what this machine and model want."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vllama.errors import BadEngineFlags
from vllama.machine.host import cores
from vllama.settings import Settings
from vllama.store.description import ModelDescription
from vllama.store.remote_code import TRUST
from vllama.worker.preload import preload

_DECIDED = "is decided by vllama and cannot be passed to vLLM"
_NOT_SPOKEN = "would cut vllama off from its own worker: put it in front of vllama, not behind"

REFUSED = {
    **dict.fromkeys(("--uds", "--host", "--port", "--served-model-name", "--model"), _DECIDED),
    **dict.fromkeys(("--api-key", "--ssl-keyfile", "--ssl-certfile", "--root-path"), _NOT_SPOKEN),
    **dict.fromkeys(("--grpc", "--headless"), "leaves no HTTP server for vllama to talk to"),
    # vLLM lets every other flag, ours too, win over the file, and reads it only where no "=" stands.
    "--config": "cannot be passed to vLLM: put the file's flags on the command line",
}
"""Flags with which the gateway could not reach its worker, and why."""


MOST_PIXELS = 64 * 1024**2
"""The largest image, 192 MiB once it is decoded. vLLM's own limit is three times that."""

EAGER = "--enforce-eager"
"""Has vLLM neither compile nor capture graphs."""

TORCH_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Settings of torch's allocators, by their old and their new name."""

_MOST_PINNING_THREADS = 16

REMOVED_VARIABLES = ("VLLM_API_KEY", "VLLM_USE_RUST_FRONTEND")
"""They do to a worker what `--api-key` and a server without our plugin would do."""


SEVERAL_HOSTS = (
    "--distributed-executor-backend",
    "--nnodes",
    "--node-rank",
    "--master-addr",
    "--data-parallel-address",
    "--data-parallel-backend",
    "--kv-transfer-config",
)
"""Flags with which a worker may have parts on other machines, to which it tells its own address."""


def check_for_all(flags: Sequence[str]) -> None:
    """Raise BadEngineFlags where a flag cannot be given for all models: one of REFUSED, or trust in their code."""
    refuse_ours(flags)
    if is_given(flags, TRUST):
        raise BadEngineFlags(
            f"{TRUST} is not given for all models: name the one that you trust, vllama pull {TRUST} NAME"
        )


def refuse_ours(flags: Sequence[str]) -> None:
    """Raise BadEngineFlags where a passed-through flag is one of REFUSED, also where it is abbreviated."""
    for name in _names(flags):
        for refused, reason in REFUSED.items():
            if _means(name, refused):
                spelled = refused if name == refused else f"{name} ({refused})"
                raise BadEngineFlags(f"{spelled} {reason}")


def command_line(
    snapshot: Path,
    names: Sequence[str],
    socket: Path,
    settings: Settings,
    *,
    user_flags: Sequence[str],
    on_cpu: bool,
    compiled: bool,
    pools: bool = False,
    dtype: str = "",
    planned: Sequence[str] = (),
) -> list[str]:
    """The arguments of `vllama.worker.launch`. The user's flags come last and win.

    `pools` says that the model makes vectors or classes and no text; `dtype` is the type to compute in, where vLLM is
    not to choose; `planned` are pairs of flag and value that the memory plan chose (`vllama.scheduler.memory.flags`).

    Raises BadEngineFlags where one of them is not the user's to give.
    """
    refuse_ours(user_flags)
    given = set(_names(user_flags))
    arguments = [str(snapshot), "--uds", str(socket), "--served-model-name", *names]

    def default(flag: str, *values: str, unless: Sequence[str] = ()) -> None:
        if not any(_means(name, known) for name in given for known in (flag, *unless)):
            arguments.extend([flag, *values])

    # The gateway logs accesses; the worker's own lines would cost time on every request.
    default("--disable-uvicorn-access-log")
    # vLLM would fetch whatever URL a request names, from our own network too. No host can be called this.
    default("--allowed-media-domains", "no remote media")
    # A model's own limit of its replies is no default of Ollama's (contract §2.10); vLLM takes it for one.
    default("--override-generation-config", '{"max_new_tokens":null}')
    if pools:
        # vLLM would let the architecture decide, and some of these write text too.
        default("--runner", "pooling")
    if dtype:
        default("--dtype", dtype)
    if settings.num_parallel:
        default("--max-num-seqs", str(settings.num_parallel))
    for flag, value in zip(planned[::2], planned[1::2], strict=True):
        default(flag, value)
    if on_cpu:
        # Prepared images are kept twice, each time up to vLLM's 4 GiB.
        default("--mm-processor-cache-gb", "1")
    else:
        default("--enable-sleep-mode", unless=("--no-enable-sleep-mode",))
    if on_cpu and not compiled:
        # Ready in a third of the time for 5 to 12 % less throughput (docs/architecture.md).
        default(EAGER, unless=("--no-enforce-eager", "-O", "--optimization-level"))
        # With vLLM's own CPU kernels greedy answers differ from transformers' (docs/architecture.md).
        default("--compilation-config", '{"custom_ops":["none"]}', unless=("-cc",))
    return [*arguments, *user_flags]


def is_given(flags: Sequence[str], flag: str) -> bool:
    """Whether the flag is among those passed through, however it is spelled."""
    return any(_means(name, flag) for name in _names(flags))


def given_value(flags: Sequence[str], flag: str) -> str:
    """The value of a passed-through flag, "" where it is not given; the last one counts, as with argparse."""
    value = ""
    for index, item in enumerate(flags):
        if is_given([item], flag):
            _, has_value, stated = item.partition("=")
            value = stated if has_value else "".join(flags[index + 1 : index + 2])
    return value


def sleeps(arguments: Sequence[str]) -> bool:
    """Whether a worker that was started with these arguments can sleep; the last word counts, as with argparse."""
    said = [
        name for name in _names(arguments) if _means(name, "--enable-sleep-mode") or name == "--no-enable-sleep-mode"
    ]
    return bool(said) and not said[-1].startswith("--no-")


def environment(
    base: Mapping[str, str], runtime: Path, *, on_cpu: bool, user_flags: Sequence[str] = ()
) -> dict[str, str]:
    """The worker's environment: offline, silent towards the world, our plugin on, REMOVED_VARIABLES away."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_DO_NOT_TRACK": "1",
    }
    ours = {
        "VLLM_PLUGINS": ",".join(_plugins(base.get("VLLM_PLUGINS", ""))),
        "VLLM_SKIP_MODEL_NAME_VALIDATION": "1",  # the gateway has resolved the name, however it was spelled
        "VLLM_RPC_BASE_PATH": str(runtime),  # so that a killed worker's sockets go with our runtime directory
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "86400",  # the gateway keeps its connections as long as the worker lives
    }
    here = {}
    if not any(is_given(user_flags, flag) for flag in SEVERAL_HOSTS):
        # vLLM would find the machine's address by a socket to a public name server, and meet its own parts there.
        here["VLLM_HOST_IP"] = base.get("VLLM_HOST_IP", "127.0.0.1")
        here["GLOO_SOCKET_IFNAME"] = base.get("GLOO_SOCKET_IFNAME", "lo")
    images = {}
    if "VLLM_MAX_IMAGE_PIXELS" not in base:
        images["VLLM_MAX_IMAGE_PIXELS"] = str(MOST_PIXELS)
    device = _cpu_environment(base) if on_cpu else _gpu_environment(base)
    kept = {name: value for name, value in base.items() if name not in REMOVED_VARIABLES}
    return {**kept, **offline, **ours, **here, **images, **device}


def _cpu_environment(base: Mapping[str, str]) -> dict[str, str]:
    made = preload(base)
    if "VLLM_CPU_OMP_THREADS_BIND" not in base:
        every_core = sorted(os.sched_getaffinity(0))
        made["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, every_core))  # vLLM's own choice leaves a core out
    return made


def _gpu_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Has torch pin host memory, of which a first sleep needs all that the weights take, with several threads.

    13 GiB took 10.4 s with its one thread and 1.6 s with 16 (one H100's host). The number has to be a power of two.
    """
    if any(name in base for name in TORCH_ALLOCATOR):
        return {}
    threads = 1 << min(_MOST_PINNING_THREADS, cores()).bit_length() - 1
    return {TORCH_ALLOCATOR[0]: f"pinned_use_cuda_host_register:True,pinned_num_register_threads:{threads}"}


def eager_environment(arguments: Sequence[str], *, on_cpu: bool) -> dict[str, str]:
    """What an eager worker on a CPU needs besides its flags.

    vLLM compiles a part of its sampler even then, for the first request with log probabilities: that takes seconds and
    a C++ compiler, and a machine without one would lose its worker.
    """
    return {"TORCHDYNAMO_DISABLE": "1"} if on_cpu and EAGER in arguments else {}


def computing_type(description: ModelDescription, *, on_cpu: bool) -> str:
    """The `--dtype` of a model that vLLM is not to choose, "" for its own choice.

    A pooling model's weights in float32 stay so on a CPU: vLLM's choice, float16, took three times as long, and is less
    exact.
    """
    pools = "completion" not in description.capabilities
    return "float32" if pools and on_cpu and description.quantization_level == "F32" else ""


def has_gpu() -> bool:
    """Whether workers will find an NVIDIA GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(
        path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*")
    )


def _plugins(stated: str) -> Iterator[str]:
    yield "vllama"
    yield from (name for name in stated.split(",") if name and name != "vllama")


def _names(flags: Sequence[str]) -> Iterator[str]:
    """The flags without their values, as vLLM's FlexibleArgumentParser reads `--a_b=1`, `--a-b.c 1` and `-O3`."""
    for flag in flags:
        if flag.startswith("-O"):
            yield "-O"
        elif flag.startswith("-"):
            yield flag.partition("=")[0].partition(".")[0].replace("_", "-")


def _means(name: str, flag: str) -> bool:
    """Whether argparse takes `name` for `flag`: it lets long flags be abbreviated as long as one alone fits."""
    return name == flag or (len(name) > 2 and name.startswith("--") and flag.startswith(name))
