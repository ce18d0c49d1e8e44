"""Command line and environment of a worker: user flags take precedence over our defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vllama.errors import BadEngineFlags
from vllama.installed.cpu_products import multiplies_packed_weights
from vllama.installed.preload import preload
from vllama.machine.host import computes_half_precision_fast, cores, host_memory
from vllama.protocol.environment import CORES
from vllama.protocol.sleep import WORKER_EXTENSION
from vllama.settings import Settings
from vllama.store.description import ModelDescription
from vllama.store.remote_code import TRUST
from vllama.store.weights import packed_bytes

_DECIDED = "is set by vllama and cannot be passed to vLLM"
_NOT_SPOKEN = "would keep vllama from reaching its own worker; use a reverse proxy in front of vllama instead"

REFUSED = {
    **dict.fromkeys(("--uds", "--host", "--port", "--served-model-name", "--model"), _DECIDED),
    **dict.fromkeys(("--api-key", "--ssl-keyfile", "--ssl-certfile", "--root-path"), _NOT_SPOKEN),
    **dict.fromkeys(("--grpc", "--headless"), "leaves no HTTP server for vllama to talk to"),
    # vLLM lets every other flag, ours too, win over the file, and reads it only where no "=" stands.
    "--config": "cannot be passed to vLLM: put the file's flags on the command line",
}
"""Flags that would keep the gateway from reaching its worker, and the reasons."""


MOST_PIXELS = 64 * 1024**2
"""Maximum pixels of an image, 192 MiB decoded. vLLM's own limit is three times as much."""

EAGER = "--enforce-eager"
"""Flag that turns off compilation and CUDA graphs."""

CONTEXT = "--max-model-len"
"""Flag for the context in tokens, of prompt and reply together."""

SCHEDULING = "--scheduling-policy"
"""Flag for the order in which waiting requests are served."""

TORCH_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Variables of torch's allocators, old and new name."""

_MOST_PINNING_THREADS = 16
_SCALES = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}

_MOST_STOP_STRINGS = 2**31 - 1
"""Maximum stop strings of a request of vLLM's own routes: Ollama has no limit, and vLLM's is OpenAI's, four."""

REMOVED_VARIABLES = ("VLLM_API_KEY", "VLLM_USE_RUST_FRONTEND")
"""Variables with the effect of `--api-key`, or of a server without our plugin."""


TOKEN = "--hf-token"  # noqa: S105 - the name of a flag
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
"""Where the token of the Hugging Face Hub comes from. Workers are offline and do not get it."""

SEVERAL_HOSTS = (
    "--distributed-executor-backend",
    "--nnodes",
    "--node-rank",
    "--master-addr",
    "--data-parallel-address",
    "--data-parallel-backend",
    "--kv-transfer-config",
)
"""Flags for workers with parts on other machines, which need its address."""


_LOOKS_FOR_WORK = "100000"
"""How often a thread of GNU's OpenMP, which vLLM preloads, looks for work before it sleeps; its default is 300,000.

A thread that looks takes its core from other engines. On two cores, a text was embedded beside a chat model that was
answering: the longest wait was 20 s by default, 4 s with 100,000 and 2 s with 30,000. One model alone was as fast as by
default with 100,000, and 5 to 10 % slower with 30,000.
"""


def check_for_all(flags: Sequence[str]) -> None:
    """Raise BadEngineFlags for flags that cannot be given for all models: REFUSED, or trust in code."""
    refuse_ours(flags)
    if is_given(flags, TRUST):
        raise BadEngineFlags(
            f"{TRUST} cannot be given for all models; give it to the model that you trust: vllama pull {TRUST} NAME"
        )


def without_token(flags: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the flags without the token of the Hub, and the token: all users can read the list of processes."""
    kept: list[str] = []
    token, is_next = "", False
    for item in flags:
        name, has_value, value = item.partition("=")
        if is_next and not item.startswith("-"):
            token, is_next = item, False
        elif name.startswith("--hf-t") and _means(name, TOKEN):  # less of it is ambiguous: vLLM refuses it
            token, is_next = (value if has_value else token), not has_value
        else:
            kept.append(item)
            is_next = False
    return tuple(kept), token


def refuse_ours(flags: Sequence[str]) -> None:
    """Raise BadEngineFlags if a passed-through flag is one of REFUSED, even abbreviated."""
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
    """Return the arguments of `vllama.worker.launch`. The user's flags come last and take precedence.

    `pools` says that the model makes vectors or classes and no text; `dtype` is the type to compute in, where vLLM is
    not to choose; `planned` are pairs of flag and value that the memory plan chose (`vllama.scheduler.memory.flags`).

    Raises BadEngineFlags where one of them is not the user's to give.
    """
    refuse_ours(user_flags)
    user_flags, _ = without_token(user_flags)
    given = set(_names(user_flags))
    arguments = [str(snapshot), "--uds", str(socket), "--served-model-name", *names]

    def default(flag: str, *values: str, unless: Sequence[str] = ()) -> None:
        if not any(_means(name, known) for name in given for known in (flag, *unless)):
            arguments.extend([flag, *values])

    # The gateway logs accesses; the worker's own lines would cost time on every request.
    default("--disable-uvicorn-access-log")
    # vLLM would fetch whatever URL a request names, from our own network too. No host can be called this.
    default("--allowed-media-domains", "no remote media")
    # Replies of /v1 say how much of the prompt was in the cache, as Ollama's do (contract §5.1).
    default("--enable-prompt-tokens-details", unless=("--no-enable-prompt-tokens-details",))
    # A model's own limit of its replies is no default of Ollama's (contract §2.10); vLLM takes it for one.
    default("--override-generation-config", '{"max_new_tokens":null}')
    if pools:
        # vLLM would let the architecture decide, and some of these write text too.
        default("--runner", "pooling")
    else:
        # Requests for several replies wait for those for one (vllama.gateway.choices).
        default(SCHEDULING, "priority")
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
        # The gateway decides when weights are copied to the host, and how long the copy stays.
        default("--worker-extension-cls", WORKER_EXTENSION)
    if on_cpu and not compiled:
        # Ready in a third of the time for 5 to 12 % less throughput (docs/architecture.md).
        default(EAGER, unless=("--no-enforce-eager", "-O", "--optimization-level"))
        # With vLLM's own CPU kernels greedy answers differ from transformers' (docs/architecture.md).
        default("--compilation-config", '{"custom_ops":["none"]}', unless=("-cc",))
    return [*arguments, *user_flags]


def is_given(flags: Sequence[str], flag: str) -> bool:
    """Return whether the flag is passed through, in any spelling."""
    return any(_means(name, flag) for name in _names(flags))


def given_value(flags: Sequence[str], flag: str) -> str:
    """Return the value of a passed-through flag, "" if absent; the last one counts, as in argparse."""
    value = ""
    for index, item in enumerate(flags):
        if is_given([item], flag):
            _, has_value, stated = item.partition("=")
            value = stated if has_value else "".join(flags[index + 1 : index + 2])
    return value


def tokens_of(text: str) -> int:
    """Parse a number like vLLM's `human_readable_int` ("8192", "8k", "4K", "1.5G"); 0 if invalid or negative."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text.strip())
    return int(float(match.group(1)) * _SCALES[match.group(2)]) if match else 0


def sleeps(arguments: Sequence[str]) -> bool:
    """Return whether a worker with these arguments can sleep; the last flag counts, as in argparse."""
    said = [
        name for name in _names(arguments) if _means(name, "--enable-sleep-mode") or name == "--no-enable-sleep-mode"
    ]
    return bool(said) and not said[-1].startswith("--no-")


def environment(
    base: Mapping[str, str], runtime: Path, *, on_cpu: bool, user_flags: Sequence[str] = ()
) -> dict[str, str]:
    """Return the worker's environment: offline, no telemetry or tokens, our plugin on, no REMOVED_VARIABLES."""
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
    limits = {"VLLM_MAX_IMAGE_PIXELS": str(MOST_PIXELS), "VLLM_MAX_STOP_STRINGS": str(_MOST_STOP_STRINGS)}
    limits = {name: value for name, value in limits.items() if name not in base}
    device = _cpu_environment(base) if on_cpu else _gpu_environment(base)
    kept = {name: value for name, value in base.items() if name not in {*REMOVED_VARIABLES, *TOKEN_VARIABLES}}
    return {**kept, **offline, **ours, **here, **limits, **device}


def _cpu_environment(base: Mapping[str, str]) -> dict[str, str]:
    made = preload(base)
    if CORES not in base:
        made[CORES] = cores_of_ranks(1)  # vLLM's own choice leaves a core out
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & base.keys():
        made["GOMP_SPINCOUNT"] = _LOOKS_FOR_WORK
    return made


def cores_of_ranks(ranks: int) -> str:
    """Return vLLM's list of the cores that each rank of a worker on CPUs computes on, divided evenly.

    vLLM's own choice wants a NUMA node for each rank.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // ranks
    if not share:
        return "nobind"
    return "|".join(",".join(map(str, cores[rank * share : (rank + 1) * share])) for rank in range(ranks))


def _gpu_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return variables that let torch pin host memory, as large as the weights, with several threads.

    13 GiB took 10.4 s with its one thread and 1.6 s with 16 (one H100's host). The number has to be a power of two.
    """
    if any(name in base for name in TORCH_ALLOCATOR):
        return {}
    threads = 1 << min(_MOST_PINNING_THREADS, cores()).bit_length() - 1
    return {TORCH_ALLOCATOR[0]: f"pinned_use_cuda_host_register:True,pinned_num_register_threads:{threads}"}


def eager_environment(arguments: Sequence[str], *, on_cpu: bool) -> dict[str, str]:
    """Return the variables that an eager worker on a CPU needs.

    vLLM compiles a part of its sampler even then, for the first request with log probabilities: that takes seconds and
    a C++ compiler, and a machine without one would lose its worker.
    """
    return {"TORCHDYNAMO_DISABLE": "1"} if on_cpu and EAGER in arguments else {}


def computing_type(description: ModelDescription, *, on_cpu: bool) -> str:
    """Return the `--dtype` for a model, "" for vLLM's own choice.

    On a CPU a model computes in float32 where its weights have 32 bits and it makes vectors or classes (vLLM's choice,
    float16, took three times as long and is less exact), or where the processor emulates types of 16 bits, unless its
    weights would then take more than half of the machine's memory.
    """
    if not on_cpu:
        return ""
    pools = "completion" not in description.capabilities
    if pools and description.quantization_level == "F32":
        return "float32"
    packed = packed_bytes(description.tensors, 4) if multiplies_packed_weights() else None
    fits = (packed or 4 * description.parameter_count) <= host_memory().total / 2
    return "float32" if description.computes_as_float and fits and not computes_half_precision_fast() else ""


def has_gpu() -> bool:
    """Return whether workers will find an NVIDIA GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(
        path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*")
    )


def _plugins(stated: str) -> Iterator[str]:
    yield "vllama"
    yield from (name for name in stated.split(",") if name and name != "vllama")


def _names(flags: Sequence[str]) -> Iterator[str]:
    """Yield the flags without values, as vLLM's FlexibleArgumentParser reads `--a_b=1`, `--a-b.c 1` and `-O3`."""
    for flag in flags:
        if flag.startswith("-O"):
            yield "-O"
        elif flag.startswith("-"):
            yield flag.partition("=")[0].partition(".")[0].replace("_", "-")


def _means(name: str, flag: str) -> bool:
    """Return whether argparse takes `name` for `flag`: it accepts unambiguous abbreviations."""
    return name == flag or (len(name) > 2 and name.startswith("--") and flag.startswith(name))
