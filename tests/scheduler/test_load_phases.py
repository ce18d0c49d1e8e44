"""Phases of loads, in logs of vLLM.

Those of 0.32 were recorded on a CPU (worker_logs/); those of 0.26 on a GPU are put together from the texts in its
sources.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vllama.scheduler.load_phases import LoadProgress, Phase, progress_of

LOGS = Path(__file__).with_name("worker_logs")

ENGINE = "(EngineCore pid=7) INFO 11-21 18:26:11 "
CUDA_0_26 = [
    ("WARNING 11-21 18:26:02 [argparse_utils.py:191] With `vllm serve`, you should…", Phase.IMPORTING, None),
    (
        "(APIServer pid=1) INFO 11-21 18:26:10 [model.py:623] Resolved architecture: Qwen2ForCausalLM",
        Phase.STARTING,
        None,
    ),
    ("(APIServer pid=1) INFO 11-21 18:26:10 [model.py:1720] Using max model len 4096", Phase.STARTING, None),
    (ENGINE + "[core.py:117] Initializing a V1 LLM engine (v0.26.0) with config: model='/m'", Phase.STARTING, None),
    (ENGINE + "[gpu_model_runner.py:5251] Starting to load model /m...", Phase.WEIGHTS, None),
    (ENGINE + "[cuda.py:483] Using FLASH_ATTN attention backend out of potential backends: (…).", Phase.WEIGHTS, None),
    ("Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]", Phase.WEIGHTS, 0),
    ("\rLoading safetensors checkpoint shards:  25% Completed | 1/4 [00:00<00:01,  2.13it/s]", Phase.WEIGHTS, 25),
    (ENGINE + "[default_loader.py:431] Loading weights took 1.93 seconds", Phase.WEIGHTS, None),
    (ENGINE + "[gpu_model_runner.py:5348] Model loading took 14.25 GiB memory and 2.3 seconds", Phase.COMPILING, None),
    (
        ENGINE + "[backends.py:1095] Using cache directory: /c/0a/rank_0_0/backbone for vLLM's torch.compile",
        Phase.COMPILING,
        None,
    ),
    (ENGINE + "[backends.py:1156] Dynamo bytecode transform time: 4.11 s", Phase.COMPILING, None),
    (ENGINE + "[backends.py:394] Compiling a graph for compile range (1, 2048) takes 5.10 s", Phase.COMPILING, None),
    (ENGINE + "[monitor.py:48] torch.compile took 11.01 s in total", Phase.COMPILING, None),
    (ENGINE + "[gpu_worker.py:561] Available KV cache memory: 100.10 GiB", Phase.WARMING_UP, None),
    (ENGINE + "[kv_cache_utils.py:2177] GPU KV cache size: 1,874,000 tokens", Phase.WARMING_UP, None),
    (ENGINE + "[kernel_warmup.py:147] Warming up FlashInfer attention.", Phase.WARMING_UP, None),
    (
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):   0%|          | 0/51 [00:00<?, ?it/s]",
        Phase.GRAPHS,
        0,
    ),
    ("Capturing CUDA graphs (decode, FULL):  35%|███▌      | 18/51 [00:01<00:02, 14.2it/s]", Phase.GRAPHS, 35),
    (ENGINE + "[gpu_model_runner.py:6845] Graph capturing finished in 3 secs, took 0.58 GiB", Phase.WARMING_UP, None),
    (
        ENGINE + "[core.py:348] init engine (profile, create kv cache, warmup model) took 25.02 s",
        Phase.WARMING_UP,
        None,
    ),
    (
        "(APIServer pid=1) INFO 11-21 18:26:14 [api_server.py:677] Starting vLLM server on unix:/1.sock",
        Phase.WARMING_UP,
        None,
    ),
]


def phases(log: str) -> list[Phase]:
    """The phases that somebody sees who reads the log again and again while it grows."""
    seen: list[Phase] = []
    lines = log.splitlines(keepends=True)
    for end in range(len(lines) + 1):
        phase = progress_of("".join(lines[:end])).phase
        if seen[-1:] != [phase]:
            seen.append(phase)
    return seen


@pytest.mark.parametrize("end", range(len(CUDA_0_26)), ids=lambda end: CUDA_0_26[end][0][-40:])
def test_each_line_of_a_gpus_load_says_what_it_is_at(end: int) -> None:
    _, phase, percent = CUDA_0_26[end]
    progress = progress_of("\n".join(line for line, _, _ in CUDA_0_26[: end + 1]))
    assert (progress.phase, progress.percent) == (phase, percent)


def test_an_eager_engine_compiles_nothing() -> None:
    eager = f"{ENGINE}[vllm.py:1164] Enforce eager set, disabling torch.compile and CUDAGraphs."
    lines = [line for line, phase, _ in CUDA_0_26 if phase not in {Phase.GRAPHS, Phase.IMPORTING}]
    lines.insert(1, eager)
    assert phases("\n".join(lines)) == [Phase.IMPORTING, Phase.STARTING, Phase.WEIGHTS, Phase.WARMING_UP]


def test_a_recorded_eager_load_on_a_cpu() -> None:
    log = (LOGS / "vllm-0.32-cpu-eager.txt").read_text()
    assert phases(log) == [Phase.IMPORTING, Phase.STARTING, Phase.WEIGHTS, Phase.WARMING_UP]


def test_a_recorded_load_on_a_cpu_that_compiles() -> None:
    log = (LOGS / "vllm-0.32-cpu-compiled.txt").read_text()
    assert phases(log) == [Phase.IMPORTING, Phase.STARTING, Phase.WEIGHTS, Phase.COMPILING, Phase.WARMING_UP]


def test_before_the_first_line_everything_is_still_imported() -> None:
    assert progress_of("") == LoadProgress(Phase.IMPORTING)


def test_the_last_line_comes_without_its_prefix_its_colours_and_earlier_states_of_its_bar() -> None:
    assert progress_of(f"{ENGINE}[core.py:1] \x1b[1mhello\x1b[0m\n\n").line == "hello"
    assert progress_of("Loading shards:   0% Completed\rLoading shards:  50% Completed\r").line == (
        "Loading shards:  50% Completed"
    )
    assert progress_of("no prefix").line == "no prefix"
    assert progress_of("(FutureWarning) x\n(Worker pid=5) told").line == "told"


def test_a_line_that_goes_on_for_ever_is_cut() -> None:
    assert len(progress_of("x" * 10_000).line) == 200
