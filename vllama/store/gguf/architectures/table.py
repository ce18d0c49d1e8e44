"""The form of an architecture's entry, and how an entry places the tensors of a file.

An entry names each tensor that a file may have. A tensor that it does not name is an error, so nothing is lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vllama.errors import StoreError
from vllama.store.gguf.placing import Piece, PlacedTensor, place, rotary_rows
from vllama.store.gguf.reading import Array, GgufFile, GgufTensor

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_SUFFIXES = (".weight", ".bias", ".scale")


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor for which a rule was found: `block` is the number of its layer, `expert` that of its expert."""

    file: GgufFile
    tensor: GgufTensor
    suffix: str
    block: int = -1
    expert: int = -1

    def named(self, pattern: str, expert: int | None = None) -> str:
        """Return a name in the snapshot: {i} in the pattern is the layer, {e} the expert, and the suffix follows."""
        return pattern.format(i=self.block, e=self.expert if expert is None else expert) + self.suffix

    def placed_as(self, name: str) -> PlacedTensor:
        """Return the whole tensor under a name without a suffix."""
        return place(name, self.tensor)

    def as_column(self, tensor: GgufTensor | None = None) -> Piece:
        """Return a matrix of biases, or that of another tensor, as one column, so that single values can move."""
        matrix = tensor or self.tensor
        return Piece(replace(matrix, shape=(math.prod(matrix.shape),), blocks=matrix.blocks.reshape(-1, 1)))

    def sibling(self, part: str) -> GgufTensor:
        """Return the tensor of the same layer and suffix whose name has this last part. Raises StoreError."""
        name = f"blk.{self.block}.{part}{self.suffix}"
        if name not in self.file.tensors:
            raise StoreError(f"the GGUF file has {self.tensor.name}, but lacks {name}")
        return self.file.tensors[name]


Rule = str | Callable[[Found], Iterable[PlacedTensor]]
"""The pattern of the name in the snapshot, or what to make of the tensor."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """How files of an architecture become a snapshot.

    `configure` returns config.json. `tensors` maps names, without suffix and with {i} and {e} for numbers, to rules.
    `is_encoder` says that the model embeds texts and does not generate.
    """

    configure: Callable[[GgufFile], dict[str, Any]]
    tensors: Mapping[str, Rule] = field(default_factory=dict)
    is_encoder: bool = False

    def place(self, file: GgufFile) -> Iterator[PlacedTensor]:
        """Yield all tensors of the snapshot in the file's order. Raises StoreError for a tensor without a rule.

        Layers that predict further tokens come last in a file and are left out.
        """
        last = int(file.key("{arch}.block_count", 0)) - int(file.key("{arch}.nextn_predict_layers", 0))
        return place_all(file, self.tensors, "blk.", last)


def place_all(file: GgufFile, rules: Mapping[str, Rule], layers: str, last: int) -> Iterator[PlacedTensor]:
    """Yield what the rules make of all tensors, in the file's order. Raises StoreError for a tensor without a rule.

    Names of layers begin with `layers`; those from number `last` on are left out.
    """
    for tensor in file.tensors.values():
        stem, suffix = _split(tensor.name)
        numbers = [int(number) for number in _NUMBER.findall(stem)]
        if stem.startswith(layers) and numbers and numbers[0] >= last:
            continue
        letters = iter(("{i}", "{e}"))
        pattern = _NUMBER.sub(lambda _: next(letters, "{?}"), stem)  # noqa: B023 - used at once
        rule = rules.get(pattern)
        if rule is None:
            raise StoreError(
                f"the GGUF file has the tensor {tensor.name}, which architecture '{file.architecture}' is not "
                "known to have"
            )
        found = Found(file, tensor, suffix, *numbers[:2])
        if isinstance(rule, str):
            yield place(found.named(rule), tensor)
        else:
            yield from rule(found)


def _split(name: str) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def ignored(found: Found) -> Iterable[PlacedTensor]:
    """Place nothing: the tensor is used for config.json or together with another one, or is not needed."""
    del found
    return ()


def whole(pattern: str) -> Rule:
    """Return the rule for a tensor whose name in the snapshot has no suffix; {i} in the pattern is the layer."""
    return lambda found: [found.placed_as(pattern.format(i=found.block))]


def shifted(pattern: str, offset: float = -1.0) -> Rule:
    """Return the rule for a tensor to which the converter added a number: Gemma's norms."""
    return lambda found: [place(found.named(pattern), found.tensor, offset=offset)]


def changed(pattern: str, change: Callable[[Array], Array]) -> Rule:
    """Return the rule for a tensor whose values the converter changed."""
    return lambda found: [place(found.named(pattern), found.tensor, change=change)]


def reshaped(pattern: str, shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Rule:
    """Return the rule for a tensor whose dimensions of size 1 the converter removed: `shape` adds them."""
    return lambda found: [place(found.named(pattern), found.tensor, shape=shape(found.tensor.shape))]


def rotary(pattern: str, heads: str) -> Rule:
    """Return the rule for q or k in llama.cpp's rotary order; `heads` is the key of the number of heads."""

    def rule(found: Found) -> Iterable[PlacedTensor]:
        count = heads_of(found.file, heads, found.block)
        rows = found.tensor.blocks.shape[0]
        if count < 1 or rows % (2 * count):
            raise StoreError(f"{found.tensor.name} has {rows} rows, which {count} heads cannot share")
        return [place(found.named(pattern), Piece(found.tensor, rotary_rows(count, rows)))]

    return rule


def heads_of(file: GgufFile, key: str, block: int) -> int:
    """Return the number of heads of a layer: one for all, or one for each layer."""
    value = file.key(key)
    return int(value[block]) if isinstance(value, list) else int(value)


def experts(pattern: str) -> Rule:
    """Return the rule for a stack of experts, which the snapshot has one by one."""

    def rule(found: Found) -> Iterable[PlacedTensor]:
        count = found.tensor.shape[0]
        for expert in range(count):
            yield place(found.named(pattern, expert), expert_rows(found.tensor, expert))

    return rule


def block_sparse_experts(module: str) -> dict[str, Rule]:
    """Return the rules for a router and its experts as Mixtral names their layers: w1, w2 and w3."""
    return {
        "blk.{i}.ffn_gate_inp": f"{module}.gate",
        "blk.{i}.ffn_gate_exps": experts(module + ".experts.{e}.w1"),
        "blk.{i}.ffn_down_exps": experts(module + ".experts.{e}.w2"),
        "blk.{i}.ffn_up_exps": experts(module + ".experts.{e}.w3"),
    }


def expert_rows(tensor: GgufTensor, expert: int) -> Piece:
    """Return the rows of one expert of a stack."""
    rows = tensor.blocks.shape[0] // tensor.shape[0]
    return Piece(tensor, slice(expert * rows, (expert + 1) * rows))


def split(*parts: tuple[str, Callable[[GgufFile], int]]) -> Rule:
    """Return the rule for layers that the converter keeps fused: each part has a pattern and a number of rows."""

    def rule(found: Found) -> Iterable[PlacedTensor]:
        start = 0
        for pattern, rows in parts:
            count = rows(found.file)
            yield place(found.named(pattern), Piece(found.tensor, slice(start, start + count)))
            start += count
        if start != found.tensor.blocks.shape[0]:
            raise StoreError(f"{found.tensor.name} has {found.tensor.blocks.shape[0]} rows instead of {start}")

    return rule


def without_prefix(rule: Callable[[Found], Iterable[PlacedTensor]], prefix: str = "model.") -> Rule:
    """Return the rule for models that have the same tensors under names without this prefix."""
    return lambda found: [replace(placed, name=placed.name.removeprefix(prefix)) for placed in rule(found)]
