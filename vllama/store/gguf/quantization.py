"""Which tensors of a snapshot keep the quantization of their GGUF file, and what config.json says about it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Flag, auto
from typing import Any

from gguf import LlamaFileType

from vllama.store.gguf import mxfp4
from vllama.store.gguf.architectures.table import expert_rows
from vllama.store.gguf.placing import PlacedTensor, place
from vllama.store.gguf.reading import Array, GgufFile
from vllama.store.gguf.repacking import FORMS, Form, Packed, repack
from vllama.store.gguf.vision.tower import TENSORS as TOWER
from vllama.store.gguf.writing import OutputTensor, unpacked
from vllama.store.weights import REPACKED

_PART = 4 << 20
"""Bytes of blocks that are repacked at a time."""

_EMBEDDING = "token_embd.weight"
_EXPERT = re.compile(r"\.experts\.\d+\.")


class _Packs(Flag):
    """The parts of a model that vLLM builds with a quantization method."""

    LAYERS = auto()
    """The linear layers and the head."""

    EMBEDDING = auto()
    EXPERTS = auto()


_PACKED_MODELS: Mapping[str, _Packs] = {
    "DeepseekV2ForCausalLM": _Packs.EXPERTS,
    "DeepseekV3ForCausalLM": _Packs.EXPERTS,
    "Gemma2ForCausalLM": _Packs.LAYERS,
    "Gemma3ForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING,
    "GemmaForCausalLM": _Packs.LAYERS,
    "Glm4MoeForCausalLM": _Packs.EXPERTS,
    "GraniteForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING,
    "Lfm2MoeForCausalLM": _Packs.EXPERTS,
    "LlamaForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING,
    "MiniMaxM2ForCausalLM": _Packs.EXPERTS,
    "MistralForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING,
    "MixtralForCausalLM": _Packs.LAYERS | _Packs.EXPERTS,
    "OlmoeForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING | _Packs.EXPERTS,
    "Phi3ForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING,
    "PhiMoEForCausalLM": _Packs.EXPERTS,
    "Qwen2ForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING,
    "Qwen2MoeForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING | _Packs.EXPERTS,
    "Qwen3ForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING,
    "Qwen3NextForCausalLM": _Packs.EXPERTS,
    "Qwen3_5MoeForCausalLM": _Packs.EXPERTS,
    "Qwen3MoeForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING | _Packs.EXPERTS,
    "StableLmForCausalLM": _Packs.LAYERS | _Packs.EMBEDDING,
}
"""The parts of each model that are packed; other models become bfloat16, except gpt-oss (vllama.store.gguf.mxfp4).

The models' source files in vLLM 0.26 and 0.32 show it (`quant_config`, and `FusedMoE` for experts). Where only experts
are packed, they are nearly all of the weights, and attention has forms of its own.
"""

_STACKS: Mapping[str, tuple[str, ...]] = {
    ".experts.gate_up_proj": ("gate_proj", "up_proj"),
    ".experts.down_proj": ("down_proj",),
}
"""Stacks of all experts in a snapshot, and the names of one expert's matrices, which follow each other in the stack."""

Kept = Form | mxfp4.Mxfp4
"""How a quantized tensor is kept."""


def divided(tensors: Iterable[PlacedTensor], architecture: str) -> Iterator[PlacedTensor]:
    """Yield the tensors with each stack of experts that can be packed divided into their matrices.

    vLLM reads experts one by one and in stacks, but packed ones only one by one.
    """
    packs = _PACKED_MODELS.get(architecture, _Packs(0))
    for placed in tensors:
        suffix = next((suffix for suffix in _STACKS if placed.name.endswith(suffix)), "")
        if suffix and _Packs.EXPERTS in packs and all(piece.source.type in FORMS for piece in placed.pieces):
            yield from _matrices(placed, placed.name.removesuffix(suffix), _STACKS[suffix])
        else:
            yield placed


def _matrices(placed: PlacedTensor, module: str, names: tuple[str, ...]) -> Iterator[PlacedTensor]:
    experts = placed.shape[0]
    pieces = placed.pieces
    if len(pieces) == 1:
        pieces = tuple(expert_rows(placed.source, expert) for expert in range(experts))
    for number, piece in enumerate(pieces):
        expert, part = divmod(number, len(names))
        yield place(f"{module}.experts.{expert}.{names[part]}.weight", piece)


def kept_forms(tensors: Sequence[PlacedTensor], architecture: str) -> list[Kept | None]:
    """Return how each tensor keeps its quantization, None for tensors with values of their own.

    `architecture` is the class in config.json. All experts of a layer are in one kernel, so they keep a form only if
    they share it.
    """
    if mxfp4.is_kept(tensors, architecture):
        return [mxfp4.MXFP4 if mxfp4.is_packed(placed) else None for placed in tensors]
    packs = _PACKED_MODELS.get(architecture)
    if packs is None:
        return [None] * len(tensors)
    forms = [_form(placed, packs) for placed in tensors]
    stacks: dict[str, set[Form | None]] = {}
    for placed, form in zip(tensors, forms, strict=True):
        stacks.setdefault(_stack(placed.name), set()).add(form)
    return [
        form if len(stacks[_stack(placed.name)]) == 1 else None for placed, form in zip(tensors, forms, strict=True)
    ]


def _stack(name: str) -> str:
    """Return a name that all experts of a layer share, other tensors' own name."""
    return _EXPERT.sub(".experts.*.", name)


def quantized(tensors: Sequence[PlacedTensor], forms: Sequence[Kept | None]) -> Iterator[OutputTensor]:
    """Yield the tensors to write: repacked to their forms, or with values of their own where that is None."""
    for placed, form in zip(tensors, forms, strict=True):
        if form is None:
            yield unpacked(placed)
        elif isinstance(form, Form):
            yield from _repacked(placed, form)
        else:
            yield from mxfp4.rearranged(placed, _PART)


def description(file: GgufFile, tensors: Sequence[PlacedTensor], forms: Sequence[Kept | None]) -> dict[str, Any]:
    """Return what config.json says about the file: its type, and what its types of tensors become.

    `forms` are those that the tensors are repacked to. The numbers of weights are those of the snapshot.
    """
    counts: Counter[tuple[str, Kept | None]] = Counter()
    for placed, form in zip(tensors, forms, strict=True):
        counts[placed.source.type.name, form] += _weights(placed)
    served = [
        {"type": kind, "weights": count, **_served(kind, form)}
        for (kind, form), count in sorted(counts.items(), key=str)
    ]
    return {
        "file_type": _file_type(file),
        "general_file_type": file.key("general.file_type", None),
        "parameter_count": sum(counts.values()),
        "tensors": served,
    }


def method(described: dict[str, Any], architecture: str) -> dict[str, Any] | None:
    """Return config.json's `quantization_config` for this description, None if no tensor keeps its quantization."""
    packed: Counter[int] = Counter()
    for entry in described["tensors"]:
        if entry["served"] == mxfp4.MXFP4.name:
            return dict(mxfp4.METHOD)
        if "bits" in entry:
            packed[entry["bits"]] += entry["weights"]
    if not packed:
        return None
    only_experts = {"only_experts": True} if _PACKED_MODELS[architecture] is _Packs.EXPERTS else {}
    return {"quant_method": REPACKED, "bits": packed.most_common(1)[0][0], **only_experts}


def _form(placed: PlacedTensor, packs: _Packs) -> Form | None:
    """Return how a tensor is repacked, None for tensors with values of their own.

    These are all that are no matrices of linear layers, such as vectors; matrices that change on their way; and vision
    towers, which are small.
    """
    if placed.source.name.startswith(TOWER):
        return None
    kinds = {piece.source.type for piece in placed.pieces}
    if len(kinds) != 1 or not placed.moves_rows_only or len(placed.shape) != 2 or not placed.name.endswith(".weight"):
        return None
    part = _Packs.LAYERS
    if ".experts." in placed.name:
        part = _Packs.EXPERTS
    elif placed.source.name == _EMBEDDING:
        part = _Packs.EMBEDDING
    form = FORMS.get(kinds.pop())
    return None if part not in packs or form is None or placed.row_length % form.group else form


def _repacked(placed: PlacedTensor, form: Form) -> Iterator[OutputTensor]:
    rows, inputs = placed.shape
    name = placed.name.removesuffix(".weight")

    def parts(field: Callable[[Packed], Array | None]) -> Callable[[], Iterator[Array]]:
        def read() -> Iterator[Array]:
            for source, blocks in placed.blocks(_PART):
                if (found := field(repack(blocks, source.type, source.name))) is not None:
                    yield found

        return read

    groups = (rows, inputs // form.group)
    yield OutputTensor(
        f"{name}.weight_packed", "I32", (rows, inputs * form.bits // 32), parts(lambda packed: packed.words)
    )
    yield OutputTensor(f"{name}.weight_scale", "F16", groups, parts(lambda packed: packed.scales))
    if form.has_minimum:
        yield OutputTensor(f"{name}.weight_minimum", "F16", groups, parts(lambda packed: packed.minimums))


def _weights(placed: PlacedTensor) -> int:
    return sum(piece.row_count for piece in placed.pieces) * placed.row_length


def _served(kind: str, form: Kept | None) -> dict[str, Any]:
    """Return how the weights are served, and the largest error in steps of their group."""
    if isinstance(form, mxfp4.Mxfp4):
        return {"served": form.name}
    if form is None:
        return {"served": kind if kind in {"F32", "F16", "BF16"} else "BF16"}
    return {
        "served": f"INT{form.bits}" + ("+minimum" if form.has_minimum else ""),
        "bits": form.bits,
        "group": form.group,
        "error_in_steps": form.error,
        "rounds_scales": form.rounds_scales,
    }


def _file_type(file: GgufFile) -> str:
    """Return the file's type as Ollama shows it, "Q4_K_M"; that of most weights if the file does not say."""
    number = file.key("general.file_type", None)
    if isinstance(number, int) and number in set(LlamaFileType):
        return str(LlamaFileType(number).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    weights: Counter[str] = Counter()
    for tensor in file.tensors.values():
        weights[tensor.type.name] += math.prod(tensor.shape)
    return max(weights, key=lambda kind: weights[kind], default="")
