"""What the tests of vLLM's layers with repacked weights share; of the tests' own modules it needs k_quants alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
pytest.importorskip("gguf")

with warnings.catch_warnings(action="ignore"):  # what vLLM's imports warn of is not ours
    import gguf
    import numpy as np
    from gguf import GGMLQuantizationType
    from k_quants import q4_k, q6_k
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )

    from vllama.store.gguf.repacking import FORMS, repack, unpack
    from vllama.worker import repacked_weights

_T = GGMLQuantizationType
_QUANTIZERS: dict[GGMLQuantizationType, Callable[[Any], Any]] = {_T.Q4_K: q4_k, _T.Q6_K: q6_k}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextmanager
def configured_vllm(directory: Path) -> Iterator[None]:
    """Give vLLM's layers the configuration and the group of processes that they need."""
    repacked_weights.register()
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{directory / 'rendezvous'}", 0, "gloo")
        initialize_model_parallel()
        yield
    # Not `cleanup_dist_env_and_memory`: it collects garbage, a second for each test.
    destroy_model_parallel()
    destroy_distributed_environment()


def quantize(
    kind: GGMLQuantizationType, rows: int, inputs: int, seed: int, *, scale: float = 1.0
) -> tuple[dict[str, Any], Any]:
    """Return the tensors of a snapshot and the weights that they stand for: random numbers of this deviation."""
    values = np.random.default_rng(seed).standard_normal((rows, inputs)).astype(np.float32) * np.float32(scale)
    if kind is _T.F16:
        tensor = torch.from_numpy(values).half()
        return {"weight": tensor}, tensor.float()
    blocks = _QUANTIZERS.get(kind, lambda v: gguf.quantize(v, kind))(values)
    packed = repack(blocks, kind)
    fields = {"weight_packed": packed.words, "weight_scale": packed.scales, "weight_minimum": packed.minimums}
    tensors = {name: torch.from_numpy(array) for name, array in fields.items() if array is not None}
    return tensors, torch.from_numpy(unpack(packed, FORMS[kind]))


def assert_close(found: Any, truth: Any, tolerance: float = 1e-5) -> None:
    """Fail if a value is further off than this part of the largest one."""
    assert (found - truth).abs().max() <= tolerance * truth.abs().max()
