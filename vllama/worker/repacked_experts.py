"""Experts whose weights are repacked blocks of GGUF files: a method for vLLM's layers of mixtures.

A snapshot has the matrices of each expert, gate, down and up (w1, w2 and w3), with fields of their own. All experts of
a layer share the form of each of the three; gate and up may differ, and down mostly does. On GPUs they stay packed
(vllama.worker.packed_experts). On CPUs, and where vLLM's kernel refuses a shape, they are unpacked while they are
loaded, and the layer is left to vLLM's own method.

Written against vLLM 0.26 and 0.32 (tests/worker/test_repacked_experts.py names them): `RoutedExperts` calls the loader
of `w13_…` and `w2_…` parameters for each expert, and reads its `quant_method` anew for each step.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.platforms import current_platform

from vllama.worker.packed_experts import PackedExperts
from vllama.worker.packed_kernels import FIELDS, PackedMatrix, bits_of, unpacked

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_PARAMETERS = {"w1": "w13", "w3": "w13", "w2": "w2"}
"""The matrices of an expert, and the prefixes of their parameters in vLLM."""


class RepackedExpertsMethod(FusedMoEMethodBase):  # type: ignore[misc] # vLLM is not typed for mypy
    """Loads, prepares and multiplies the experts of one layer."""

    def __init__(self, moe: Any, prefix: str) -> None:
        super().__init__(moe)
        self._plain = UnquantizedFusedMoEMethod(moe)
        self._prefix = prefix
        self._stacks: dict[tuple[str, str], Tensor] = {}
        """Tensors of all experts of this rank, by matrix and field."""
        self._loaded: dict[tuple[str, str], set[int]] = {}

    def maybe_roundup_sizes(self, *arguments: Any, **named: Any) -> tuple[int, int]:
        """Return the sizes as they are in the snapshot, unless vLLM's own method wants others for its experts."""
        sizes: tuple[int, int] = self._plain.maybe_roundup_sizes(*arguments, **named)
        return sizes

    def create_weights(
        self,
        layer: nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register empty parameters, which collect what is loaded: shapes are known only then."""
        self._experts, self._dtype = num_experts, params_dtype
        self._arguments = {
            "num_experts": num_experts,
            "hidden_size": hidden_size,
            "intermediate_size_per_partition": intermediate_size_per_partition,
            "params_dtype": params_dtype,
            **extra_weight_attrs,
        }
        for prefix in ("w13", "w2"):
            for field, dtype in FIELDS.items():
                parameter = nn.Parameter(torch.empty(0, dtype=dtype or params_dtype), requires_grad=False)
                parameter.weight_loader = self._loader(layer, field)
                layer.register_parameter(f"{prefix}_{field}", parameter)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Give the weights to kernels. Raises ValueError if weights are missing."""
        matrices = {name: self._matrix(name) for name in ("w1", "w2", "w3")}
        self._stacks.clear()
        device = layer.w13_weight.device
        for prefix in ("w13", "w2"):
            for field in FIELDS:
                delattr(layer, f"{prefix}_{field}")
        if not current_platform.is_cpu():
            try:
                layer.packed = self._packed(matrices)
            except ValueError as error:
                log.warning("%s is unpacked to %s: %s", self._prefix, self._dtype, error)
            else:
                return
        self._make_plain(layer, matrices, device)

    def get_fused_moe_quant_config(self, layer: nn.Module) -> None:
        """Return no configuration: that is for vLLM's own kernels."""
        del layer

    def apply(  # noqa: PLR0917 - vLLM's signature
        self,
        layer: nn.Module,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any = None,
        shared_experts_input: Tensor | None = None,
    ) -> Tensor:
        """Return the sum of the chosen experts' outputs for each row; vLLM itself computes shared experts."""
        del shared_experts, shared_experts_input
        result: Tensor = layer.packed(
            x,
            topk_weights,
            topk_ids,
            activation=layer.activation,
            expert_count=layer.global_num_experts,
            expert_map=layer.expert_map,
            weights_inputs=layer.apply_router_weight_on_input,
        )
        return result

    def _loader(self, layer: nn.Module, field: str) -> Any:
        def load(  # noqa: PLR0917 - vLLM's signature
            param: nn.Parameter,
            loaded_weight: Tensor,
            weight_name: str,
            shard_id: str,
            expert_id: int,
            return_success: bool = False,
        ) -> bool | None:
            del weight_name
            expert = layer._map_global_expert_id_to_local_expert_id(expert_id)  # noqa: SLF001 - its own loader's
            if expert != -1:
                own = self._own(loaded_weight, shard_id, field)
                self._put(shard_id, field, expert, own, param.device)
            return expert != -1 if return_success else None

        return load

    def _own(self, loaded: Tensor, matrix: str, field: str) -> Tensor:
        """Return this rank's outputs of gate and up, or inputs of down. Raises ValueError if that divides a group."""
        parallel = self.moe.moe_parallel_config
        dimension = 1 if matrix == "w2" else 0
        if loaded.shape[dimension] % parallel.tp_size:
            raise ValueError(
                f"{parallel.tp_size} ranks cannot share the {loaded.shape[dimension]} parts of {matrix} of "
                f"{self._prefix} ({field}); use a smaller --tensor-parallel-size, or --enable-expert-parallel"
            )
        count = loaded.shape[dimension] // parallel.tp_size
        return loaded.narrow(dimension, parallel.tp_rank * count, count)

    def _put(self, matrix: str, field: str, expert: int, tensor: Tensor, device: torch.device) -> None:
        key = matrix, field
        if key not in self._stacks:
            self._stacks[key] = torch.empty(self._experts, *tensor.shape, dtype=tensor.dtype, device=device)
            self._loaded[key] = set()
        self._stacks[key][expert].copy_(tensor)
        self._loaded[key].add(expert)

    def _matrix(self, name: str) -> PackedMatrix | Tensor:
        """Return one matrix of all experts."""
        fields = {field: self._stacks[name, field] for field in FIELDS if (name, field) in self._stacks}
        is_complete = "weight" in fields or {"weight_packed", "weight_scale"} <= fields.keys()
        if not is_complete or any(len(self._loaded[name, field]) < self._experts for field in fields):
            raise ValueError(f"the snapshot lacks weights of {self._prefix} ({name}); import the model again")
        if "weight" in fields:
            return fields["weight"].to(self._dtype)
        words, scales = fields["weight_packed"], fields["weight_scale"]
        return PackedMatrix(words, scales, fields.get("weight_minimum"), bits_of(words, scales))

    def _packed(self, matrices: dict[str, PackedMatrix | Tensor]) -> PackedExperts:
        if self.moe.is_lora_enabled:
            raise ValueError("vLLM serves adapters of experts with its own kernels only")
        return PackedExperts(matrices, self._dtype)

    def _make_plain(self, layer: nn.Module, matrices: dict[str, PackedMatrix | Tensor], device: torch.device) -> None:
        """Unpack all, and leave the layer to vLLM's own method, whose parameters may have padding."""
        with torch.device(device):
            self._plain.create_weights(layer, **self._arguments)
        layer.w13_weight.data.zero_()
        layer.w2_weight.data.zero_()
        half = layer.w13_weight.shape[1] // 2
        starts = {"w1": 0, "w3": half, "w2": 0}
        for name, matrix in matrices.items():
            target = getattr(layer, f"{_PARAMETERS[name]}_weight").data
            for expert in range(self._experts):
                values = _values(matrix, expert, self._dtype)
                rows, inputs = values.shape
                target[expert, starts[name] : starts[name] + rows, :inputs] = values
        layer.quant_method = self._plain
        self._plain.process_weights_after_loading(layer)


def _values(matrix: PackedMatrix | Tensor, expert: int, dtype: torch.dtype) -> Tensor:
    if isinstance(matrix, PackedMatrix):
        return unpacked(*matrix.part(expert), dtype)
    return matrix[expert]
