"""Layers of vLLM with repacked weights: what is loaded, how fused layers keep their forms, and what they compute."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
pytest.importorskip("gguf")

with warnings.catch_warnings(action="ignore"):  # what vLLM's imports warn of is not ours
    from gguf import GGMLQuantizationType
    from repacked_layers import assert_close, configured_vllm, needs_gpu, quantize
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from vllm.platforms import current_platform

    from vllama.store.weights import REPACKED
    from vllama.worker import packed_kernels, repacked_weights
    from vllama.worker.packed_kernels import PackedMatrix, PackedProduct

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

_T = GGMLQuantizationType


class TorchKernel:
    """Stands in for a kernel of vLLM: the product of the integers and their scales, computed by torch."""

    def __init__(self, config: Any, w_q_param_name: str, w_s_param_name: str) -> None:
        assert not config.zero_points
        self.config = config
        self.names = w_q_param_name, w_s_param_name

    def process_weights_after_loading(self, layer: Any) -> None:
        words, scales = (getattr(layer, name) for name in self.names)
        self.weight = PackedMatrix(words.data, scales.data, None, self.config.weight_type.size_bits).values(
            self.config.act_type
        )

    def apply_weights(self, layer: Any, x: Any, bias: Any) -> Any:
        del layer
        assert bias is None
        return torch.nn.functional.linear(x, self.weight)


@pytest.fixture(autouse=True)
def vllm_config(tmp_path: Path) -> Iterator[None]:
    """vLLM's layers need a configuration and a group of processes."""
    with configured_vllm(tmp_path):
        yield


@pytest.fixture(params=["unpacked", "packed", "packed on a CPU"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways: without a kernel, where vLLM has kernels, and with our own for CPUs."""
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: request.param != "packed")
    if request.param == "packed":
        monkeypatch.setattr(packed_kernels, "choose_mp_linear_kernel", lambda config: TorchKernel)
    elif request.param == "unpacked":
        monkeypatch.setattr(repacked_weights, "CpuProduct", refuse)
    return str(request.param)


def refuse(_: Any) -> None:
    raise ValueError("Failed to find a kernel")


def load(layer: Any, tensors: dict[str, Any], *shard: Any) -> None:
    for name, tensor in tensors.items():
        parameter = getattr(layer, name)
        parameter.weight_loader(parameter, tensor, *shard)


def config() -> Any:
    return get_quantization_config(REPACKED).from_config({"quant_method": REPACKED})


@pytest.mark.parametrize(
    ("kinds", "products"),
    [
        ((_T.Q4_0, _T.Q4_0, _T.Q4_0), 1),
        ((_T.Q4_K, _T.Q4_K, _T.Q6_K), 2),
        ((_T.Q5_0, _T.Q5_0, _T.Q8_0), 1),  # both have 8 bits and groups of 32
        ((_T.Q4_1, _T.F16, _T.Q5_1), 3),
    ],
    ids=["same", "mixed", "of one form", "all different"],
)
def test_fused_layers_keep_their_own_forms(
    kernels: str, kinds: tuple[GGMLQuantizationType, ...], products: int
) -> None:
    layer = QKVParallelLinear(256, 64, 4, 2, bias=True, params_dtype=torch.float32, quant_config=config(), prefix="qkv")
    layer.bias.data = torch.randn(512)
    weights = []
    for shard, kind, rows in zip("qkv", kinds, (256, 128, 128), strict=True):
        tensors, truth = quantize(kind, rows, 256, ord(shard))
        load(layer, tensors, shard)
        weights.append(truth)
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(3, 256)
    found, _ = layer(x)
    assert_close(found, x @ torch.cat(weights).t() + layer.bias)
    assert layer.products is None if kernels == "unpacked" else len(layer.products) == products


def test_a_layer_that_is_fused_in_the_file_is_divided_into_its_parts(kernels: str) -> None:
    layer = MergedColumnParallelLinear(
        64, [96, 32], bias=False, params_dtype=torch.float32, quant_config=config(), prefix="gate_up"
    )
    tensors, truth = quantize(_T.Q4_0, 128, 64, 3)
    load(layer, tensors)
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(2, 64)
    assert_close(layer(x)[0], x @ truth.t())


@pytest.mark.parametrize("kind", [_T.Q4_0, _T.Q4_1, _T.Q8_0, _T.Q6_K])
def test_an_embedding_gathers_rows_and_a_head_pads_the_vocabulary(kernels: str, kind: GGMLQuantizationType) -> None:
    tensors, truth = quantize(kind, 100, 256, 9)  # padded to 128 rows
    embedding = VocabParallelEmbedding(100, 256, params_dtype=torch.float32, quant_config=config(), prefix="embed")
    head = ParallelLMHead(100, 256, params_dtype=torch.float32, quant_config=config(), prefix="head")
    for layer in (embedding, head):
        load(layer, tensors)
        layer.quant_method.process_weights_after_loading(layer)
    ids = torch.tensor([[0, 99], [42, 7]])
    assert_close(embedding(ids), truth[ids])
    x = torch.randn(2, 256)
    logits = head.quant_method.apply(head, x)
    assert_close(logits[:, :100], x @ truth.t())
    assert logits.shape == (2, 128)
    assert (logits[:, 100:] == 0).all()


def test_a_tied_head_is_its_embedding() -> None:
    embedding = VocabParallelEmbedding(64, 64, params_dtype=torch.float32, quant_config=config(), prefix="embed")
    head = ParallelLMHead(64, 64, params_dtype=torch.float32, quant_config=config(), prefix="head")
    assert head.tie_weights(embedding) is embedding


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_takes_its_rows_or_its_groups_of_inputs(kernels: str, rank: int) -> None:
    """Two ranks: 4 heads and 1 head of keys, which both ranks have; and half of the inputs of the layer after."""
    column = QKVParallelLinear(
        64, 32, 2, 1, bias=False, params_dtype=torch.float32, quant_config=config(), prefix="qkv"
    )
    row = RowParallelLinear(64, 32, bias=False, params_dtype=torch.float32, quant_config=config(), prefix="o")
    for layer in (column, row):
        layer.tp_rank, layer.tp_size = rank, 2
    row.quant_method._all_inputs = 128
    truths = {}
    for shard, rows in zip("qkv", (128, 32, 32), strict=True):
        tensors, truths[shard] = quantize(_T.Q4_1, rows, 64, ord(shard))
        load(column, tensors, shard)
    tensors, truth = quantize(_T.Q4_1, 32, 128, 1)
    load(row, tensors)
    for layer in (column, row):
        layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(2, 64)
    queries = truths["q"][64 * rank : 64 * rank + 64]
    assert_close(column.quant_method.apply(column, x), x @ torch.cat([queries, truths["k"], truths["v"]]).t())
    assert_close(row.quant_method.apply(row, x), x @ truth[:, 64 * rank : 64 * rank + 64].t())


def test_groups_that_ranks_cannot_share_are_refused() -> None:
    layer = RowParallelLinear(
        32, 32, bias=False, params_dtype=torch.float32, quant_config=config(), prefix="layers.3.o"
    )
    layer.tp_rank, layer.tp_size = 0, 2
    layer.quant_method._all_inputs, layer.quant_method._inputs = 96, 48
    tensors, _ = quantize(_T.Q4_0, 32, 96, 1)
    with pytest.raises(ValueError, match=r"2 ranks cannot share the 3 columns of layers\.3\.o\.weight_scale"):
        load(layer, {"weight_scale": tensors["weight_scale"]})


def test_missing_weights_are_named() -> None:
    layer = RowParallelLinear(
        64, 32, bias=False, params_dtype=torch.float32, quant_config=config(), prefix="layers.3.o"
    )
    with pytest.raises(ValueError, match=r"lacks the weights of layers\.3\.o; import the model again"):
        layer.quant_method.process_weights_after_loading(layer)


def test_the_worker_registers_the_method_that_the_store_writes() -> None:
    assert repacked_weights.METHOD == REPACKED


def test_layers_can_be_compiled_in_one_piece(kernels: str) -> None:
    """vLLM compiles models in one piece, and CUDA graphs allow no decisions that depend on data."""
    embedding = VocabParallelEmbedding(64, 256, params_dtype=torch.float32, quant_config=config(), prefix="embed")
    layer = MergedColumnParallelLinear(
        256, [64, 32], bias=False, params_dtype=torch.float32, quant_config=config(), prefix="gate_up"
    )
    rows, _ = quantize(_T.Q4_1, 64, 256, 1)
    gate, _ = quantize(_T.Q4_K, 64, 256, 2)
    up, _ = quantize(_T.Q6_K, 32, 256, 3)
    load(embedding, rows)
    load(layer, gate, 0)
    load(layer, up, 1)
    for made in (embedding, layer):
        made.quant_method.process_weights_after_loading(made)

    def model(ids: Any) -> Any:
        return layer(embedding(ids))[0]

    ids = torch.tensor([5, 63, 0])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(ids), model(ids))


def test_a_layer_without_a_kernel_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_kernels, "choose_mp_linear_kernel", refuse)
    layer = RowParallelLinear(64, 32, bias=False, params_dtype=torch.float32, quant_config=config(), prefix="o")
    tensors, truth = quantize(_T.Q4_0, 32, 64, 1)
    load(layer, tensors)
    with monkeypatch.context() as gpu:
        gpu.setattr(type(current_platform), "is_cpu", lambda self: False)
        layer.quant_method.process_weights_after_loading(layer)
    assert layer.products is None
    x = torch.randn(2, 64)
    assert_close(torch.nn.functional.linear(x, layer.weight), x @ truth.t())


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [_T.Q4_0, _T.Q4_1, _T.Q4_K, _T.Q5_0, _T.Q5_1, _T.Q6_K, _T.Q8_0])
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 128), (768, 4864), (4096, 152064)])
def test_kernels_compute_the_products_of_the_weights(
    kind: GGMLQuantizationType, dtype: Any, inputs: int, outputs: int
) -> None:
    """Also compiled, and captured in a CUDA graph."""
    if outputs > 100_000 and kind not in {_T.Q4_0, _T.Q6_K}:
        pytest.skip("one large head of each width is enough")
    tensors, truth = quantize(kind, outputs, inputs, 4)
    words, scales = tensors["weight_packed"].cuda(), tensors["weight_scale"].cuda()
    minimums = tensors["weight_minimum"].cuda() if "weight_minimum" in tensors else None
    product = PackedProduct(PackedMatrix(words, scales, minimums, words.shape[1] * 32 // inputs), dtype)
    torch.compiler.reset()  # else the forms of all cases count towards the most that one function is compiled for
    compiled = torch.compile(product, fullgraph=True, dynamic=False)
    for rows in (1, 8, 100):
        x = torch.randn(rows, inputs, device="cuda").to(dtype)
        expected = x.float() @ truth.cuda().t()
        tolerance = 2e-3 if dtype is torch.float16 else 1e-2
        assert_close(product(x).float(), expected, tolerance)
        assert_close(compiled(x).float(), expected, tolerance)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = product(x)
        graph.replay()
        assert_close(captured.float(), expected, tolerance)


@needs_gpu
@pytest.mark.parametrize("kinds", [(_T.Q4_K, _T.Q6_K), (_T.Q6_K, _T.Q4_K), (_T.Q4_K,), (_T.Q4_1, _T.Q4_0, _T.Q5_1)])
@pytest.mark.parametrize("inputs", [256, 3584, 18944])
def test_the_parts_of_a_fused_layer_are_corrected_and_joined(kinds: tuple[Any, ...], inputs: int) -> None:
    """With a bias, for one row, for a few and for many, compiled with a free number of rows."""
    sizes = (1024, 512, 256)[: len(kinds)]
    products, truths = [], []
    for number, (kind, outputs) in enumerate(zip(kinds, sizes, strict=True)):
        tensors, truth = quantize(kind, outputs, inputs, number)
        words, scales = tensors["weight_packed"].cuda(), tensors["weight_scale"].cuda()
        minimums = tensors["weight_minimum"].cuda() if "weight_minimum" in tensors else None
        matrix = PackedMatrix(words, scales, minimums, words.shape[1] * 32 // inputs)
        products.append(PackedProduct(matrix, torch.bfloat16))
        truths.append(truth.cuda())
    bias = torch.randn(sum(sizes), device="cuda").bfloat16() * 30
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: packed_kernels.side_by_side(products, x * 1.0, bias), fullgraph=True, dynamic=True
    )
    for rows in (1, 2, 16, 40, 64, 65, 300):
        x = torch.randn(rows, inputs, device="cuda").bfloat16()
        expected = x.float() @ torch.cat(truths).t() + bias.float()
        assert_close(packed_kernels.side_by_side(products, x, bias).float(), expected, 1e-2)
        assert_close(compiled(x).float(), expected, 1e-2)
