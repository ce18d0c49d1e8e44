"""Layers whose weights are repacked blocks of GGUF files, as a quantization method of vLLM's registry.

vLLM fuses layers (q, k, v; gate, up), and a GGUF file may store each of them in another type. Each keeps its own form
here, and neighbours with the same form are multiplied together: no layer is widened because of another one. The form is
that of the tensors in the snapshot, so its configuration need not list layers. Layers without packed weights are
those of vLLM. On CPUs, where vLLM's kernels lack some forms or need AVX-512, products in 32 bits are our own
(vllama.worker.cpu_products); for other types the weights are unpacked while they are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, QKVParallelLinear, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.platforms import current_platform

from vllama.worker.cpu_products import CpuProduct
from vllama.worker.packed_kernels import (
    FIELDS,
    PackedMatrix,
    PackedProduct,
    PlainProduct,
    equal_neighbours,
    joined,
    side_by_side,
    unpacked,
)
from vllama.worker.repacked_experts import RepackedExpertsMethod

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

METHOD = "vllama_gguf"
"""The `quant_method` of config.json, as vllama.store.gguf.quantization writes it."""

_QKV = {"q": 0, "k": 1, "v": 2}


def register() -> None:
    """Make the method known to vLLM in this process; the second time does nothing."""
    register_quantization_config(METHOD)(RepackedConfig)


class RepackedConfig(QuantizationConfig):  # type: ignore[misc] # vLLM is not typed for mypy
    """The method for a snapshot: linear layers, embeddings, heads and experts.

    `only_experts` says that the snapshot has no other packed weights, so all other layers are vLLM's own.
    """

    def __init__(self, *, only_experts: bool = False) -> None:
        super().__init__()
        self._only_experts = only_experts

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RepackedConfig:
        """Return the method for config.json's `quantization_config`."""
        return cls(only_experts=bool(config.get("only_experts")))

    def get_name(self) -> str:
        """Return the name in config.json."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Return the types to compute in."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return Turing, from which on vLLM's Marlin kernel runs."""
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no files: config.json has all."""
        return []

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Return the method of a layer, None for vLLM's own."""
        if isinstance(layer, RoutedExperts):
            return RepackedExpertsMethod(layer.moe_config, prefix)
        if isinstance(layer, LinearBase):
            plain = UnquantizedLinearMethod()
            return plain if self._only_experts else RepackedMethod(plain, prefix)
        if isinstance(layer, VocabParallelEmbedding) and not self._only_experts:
            return RepackedMethod(UnquantizedEmbeddingMethod(), prefix)
        return None


class RepackedMethod(LinearMethodBase):  # type: ignore[misc]
    """Loads, prepares and multiplies the weights of one layer; `plain` is vLLM's method for other weights."""

    def __init__(self, plain: LinearMethodBase | UnquantizedEmbeddingMethod, prefix: str) -> None:
        self._plain = plain
        self._prefix = prefix
        self._loaded: dict[tuple[str, int], Tensor] = {}
        """Tensors by field and number of the fused layer, until all are there."""

    def create_weights(  # noqa: PLR0917 - vLLM's signature
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register empty parameters, which collect what is loaded: shapes are known only then."""
        del output_size, extra_weight_attrs
        self._outputs, self._dtype = output_partition_sizes, params_dtype
        self._inputs, self._all_inputs = input_size_per_partition, input_size
        self._multiplies = not isinstance(layer, VocabParallelEmbedding) or _is_head(layer)
        for name, dtype in FIELDS.items():
            parameter = nn.Parameter(torch.empty(0, dtype=dtype or params_dtype), requires_grad=False)
            parameter.weight_loader = self._loader(layer, name)
            parameter.layer = layer
            layer.register_parameter(name, parameter)

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """Return the embedding, which is the head too."""
        del layer
        return embed_tokens

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Give the weights to kernels. Raises ValueError if weights are missing."""
        if not self._loaded:
            self._share(layer)
            return
        parts = [self._part(number) for number in range(len(self._outputs))]
        self._loaded.clear()
        if all(isinstance(part, torch.Tensor) for part in parts) or not self._has_kernels():
            self._make_plain(layer, parts)
            return
        try:
            self._make_packed(layer, parts)
        except ValueError as error:  # there is no kernel
            log.warning("%s is unpacked to %s: %s", self._prefix, self._dtype, error)
            self._make_plain(layer, parts)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the product with the weights of all fused layers, side by side."""
        if layer.products is None:
            return self._plain.apply(layer, x, bias)
        return side_by_side(list(layer.products), x, bias)

    def embedding(self, layer: nn.Module, input_: Tensor) -> Tensor:
        """Return the rows of these tokens."""
        if layer.bits is None:
            return self._plain.embedding(layer, input_)
        minimums = layer.weight_minimum[input_] if layer.weight_minimum.numel() else None
        return unpacked(layer.weight_packed[input_], layer.weight_scale[input_], minimums, layer.bits, self._dtype)

    def _loader(self, layer: nn.Module, field: str) -> Callable[..., None]:
        def load(
            parameter: nn.Parameter, loaded_weight: Tensor, loaded_shard_id: int | str | tuple[int, ...] | None = None
        ) -> None:
            parts = self._parts(loaded_shard_id)
            sizes = [_rows_in_file(layer)[part] for part in parts] if len(parts) > 1 else [loaded_weight.shape[0]]
            for part, piece in zip(parts, loaded_weight.split(sizes), strict=True):
                own = self._own_inputs(layer, self._own_rows(layer, piece, part), field)
                self._loaded[field, part] = own.to(parameter.device, copy=True).contiguous()

        return load

    def _parts(self, shard: int | str | tuple[int, ...] | None) -> list[int]:
        """Return the numbers of the fused layers that a tensor belongs to."""
        if shard is None:
            return list(range(len(self._outputs)))
        if isinstance(shard, tuple):
            return list(shard)
        return [_QKV[shard] if isinstance(shard, str) else shard]

    def _own_rows(self, layer: nn.Module, loaded: Tensor, part: int) -> Tensor:
        """Return this rank's rows. Several ranks may share them, and replicated layers have all."""
        if isinstance(layer, VocabParallelEmbedding):
            indices = layer.shard_indices
            count = indices.org_vocab_end_index - indices.org_vocab_start_index
            return loaded.narrow(0, indices.org_vocab_start_index, count)
        count = self._outputs[part]
        shares = loaded.shape[0] // count
        return loaded.narrow(0, layer.tp_rank * shares // layer.tp_size * count, count)

    def _own_inputs(self, layer: nn.Module, loaded: Tensor, field: str) -> Tensor:
        """Return the columns of this rank. Raises ValueError if that would divide a group of inputs."""
        shares = self._all_inputs // self._inputs
        if shares == 1:
            return loaded
        if loaded.shape[1] % shares:
            raise ValueError(
                f"{shares} ranks cannot share the {loaded.shape[1]} columns of {self._prefix}.{field}; "
                "use a smaller --tensor-parallel-size"
            )
        count = loaded.shape[1] // shares
        return loaded.narrow(1, layer.tp_rank * count, count)

    def _part(self, number: int) -> PackedMatrix | Tensor:
        """Return what was loaded for one of the fused layers; rows that pad a vocabulary are zero."""
        fields = {field: self._loaded[field, number] for field in FIELDS if (field, number) in self._loaded}
        padding = self._outputs[number] - next(iter(fields.values())).shape[0] if fields else 0
        if padding:
            fields = {field: nn.functional.pad(tensor, (0, 0, 0, padding)) for field, tensor in fields.items()}
        if "weight" in fields:
            return fields["weight"].to(self._dtype)
        if not {"weight_packed", "weight_scale"} <= fields.keys():
            raise ValueError(f"the snapshot lacks weights of {self._prefix}; import the model again")
        words = fields["weight_packed"]
        bits = words.shape[1] * 32 // self._inputs
        return PackedMatrix(words, fields["weight_scale"], fields.get("weight_minimum"), bits)

    def _has_kernels(self) -> bool:
        return self._dtype is torch.float32 or not current_platform.is_cpu()

    def _share(self, layer: nn.Module) -> None:
        """Take the weights of the layer whose parameters this one was given: a tied head of some models."""
        owner = getattr(layer.weight, "layer", layer)
        if not hasattr(owner, "products"):
            raise ValueError(f"the snapshot lacks the weights of {self._prefix}; import the model again")
        if owner is not layer:
            layer.products, layer.bits, layer.weight = owner.products, owner.bits, owner.weight
            if hasattr(owner, "cpu_linear"):
                layer.cpu_linear = owner.cpu_linear

    def _make_plain(self, layer: nn.Module, parts: list[PackedMatrix | Tensor]) -> None:
        """Unpack all, and leave the layer to vLLM's own method."""
        weights = [part.values(self._dtype) if isinstance(part, PackedMatrix) else part for part in parts]
        layer.products, layer.bits = None, None
        layer.weight = nn.Parameter(torch.cat(weights) if len(weights) > 1 else weights[0], requires_grad=False)
        self._plain.process_weights_after_loading(layer)

    def _make_packed(self, layer: nn.Module, parts: list[PackedMatrix | Tensor]) -> None:
        layer.products, layer.bits = None, None
        if self._multiplies:
            layer.products = nn.ModuleList(_product(run, self._dtype) for run in equal_neighbours(parts))
        if isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead):
            words, scales, minimums, layer.bits = parts[0]
            for name, tensor in zip(FIELDS, (words, scales, minimums), strict=False):
                if tensor is not None:
                    layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def _product(run: list[Any], dtype: torch.dtype) -> nn.Module:
    if not isinstance(run[0], PackedMatrix):
        return PlainProduct(torch.cat(run))
    matrix = run[0] if len(run) == 1 else joined(run)
    return CpuProduct(matrix) if current_platform.is_cpu() else PackedProduct(matrix, dtype)


def _is_head(layer: nn.Module) -> bool:
    """Return whether the layer computes logits: a head, or an embedding that is the head too."""
    if isinstance(layer, ParallelLMHead):
        return True
    model = get_current_vllm_config().model_config
    return model is not None and bool(getattr(model.hf_config.get_text_config(), "tie_word_embeddings", False))


def _rows_in_file(layer: nn.Module) -> list[int]:
    """Return the rows of each fused layer in a snapshot that has them in one tensor."""
    if isinstance(layer, QKVParallelLinear):
        keys = layer.total_num_kv_heads * layer.head_size
        values = layer.total_num_kv_heads * getattr(layer, "v_head_size", layer.head_size)
        return [layer.total_num_heads * layer.head_size, keys, values]
    sizes: list[int] = layer.output_sizes
    return sizes
