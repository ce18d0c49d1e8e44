"""Architectures and quantizations that the installed vLLM can load, read from its files without importing it.

Internal: the tables of architectures, `_PREVIOUSLY_SUPPORTED_MODELS` and `_OOT_SUPPORTED_MODELS`
(`vllm/model_executor/models/registry.py`), `_SUFFIX_TO_DEFAULTS` (`vllm/config/model.py`), `QuantizationMethods` and
`DEPRECATED_QUANTIZATION_METHODS` (`vllm/model_executor/layers/quantization/__init__.py`), the checks of activation
ordering (`utils/gptq_utils.py`, `compressed_tensors/compressed_tensors.py` there; since 0.30), and transformers'
`modeling_auto.py`. `tests/installed/test_loading.py` compares them with what vLLM itself says.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vllama.installed.registry import vllm_directory

_PREVIOUS, _ELSEWHERE = "_PREVIOUSLY_SUPPORTED_MODELS", "_OOT_SUPPORTED_MODELS"
_TABLE = re.compile(r"_[A-Z_]+_MODELS")
_VERSION = re.compile(r"^__version__ = (?:version = )?['\"]([^'\"]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Loading:
    """Facts about one version of vLLM.

    `removed` maps an architecture to the last version that had it, `elsewhere` one to the address of a plugin for it.
    `suffixes` end the names of architectures that stand for each other. An empty set means that the files do not tell.
    """

    version: str = ""
    architectures: frozenset[str] = frozenset()
    removed: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    suffixes: tuple[str, ...] = ()
    quantizations: frozenset[str] = frozenset()
    deprecated: frozenset[str] = frozenset()
    orders_gptq: bool = True
    orders_compressed_tensors: bool = True
    """Whether weights are loaded that were quantized in groups and with activation ordering, in these two formats."""
    transformers_text: str = ""

    def knows(self, architecture: str) -> bool:
        """Return whether vLLM loads this architecture, itself or with the class of transformers."""
        if not self.architectures or f'"{architecture}"' in self.transformers_text:
            return True
        return self._stem(architecture) in {self._stem(known) for known in self.architectures}

    def _stem(self, architecture: str) -> str:
        """Return the name without its suffix: vLLM makes embeddings of `LlamaModel` with `LlamaForCausalLM`."""
        suffix = next((suffix for suffix in self.suffixes if architecture.endswith(suffix)), "")
        return architecture.removesuffix(suffix)


@cache
def installed_loading() -> Loading:
    """Read the files; a `Loading` that refuses nothing where no vLLM is installed."""
    root = vllm_directory()
    if root is None:
        return Loading()
    layers = root / "model_executor" / "layers" / "quantization"
    registry = dict(_assigned(root / "model_executor" / "models" / "registry.py"))
    methods = dict(_assigned(layers / "__init__.py"))
    suffixes = dict(_assigned(root / "config" / "model.py")).get("_SUFFIX_TO_DEFAULTS")
    found = _VERSION.search(_text(root / "_version.py"))
    known = (_keys(table) for name, table in registry.items() if _TABLE.fullmatch(name) and name != _PREVIOUS)
    elsewhere = _texts(registry.get(_ELSEWHERE))
    return Loading(
        version=found[1] if found else "",
        architectures=frozenset(architecture for keys in known for architecture in keys) - elsewhere.keys(),
        removed=_texts(registry.get(_PREVIOUS)),
        elsewhere=elsewhere,
        suffixes=tuple(text for text in _constants(suffixes) if text[:1].isupper()),
        quantizations=frozenset(_constants(methods.get("QuantizationMethods"))),
        deprecated=frozenset(_constants(methods.get("DEPRECATED_QUANTIZATION_METHODS"))),
        orders_gptq=not _raises_about(layers / "utils" / "gptq_utils.py", "desc_act"),
        orders_compressed_tensors=not _raises_about(
            layers / "compressed_tensors" / "compressed_tensors.py", "actorder"
        ),
        transformers_text=_transformers_text(),
    )


def _transformers_text() -> str:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return ""
    return _text(Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _assigned(path: Path) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names that a module assigns at its top level, with their expressions."""
    for node in ast.parse(_text(path)).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None:
            yield target.id, node.value


def _keys(table: ast.expr) -> Iterator[str]:
    for key in table.keys if isinstance(table, ast.Dict) else ():
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value


def _texts(table: ast.expr | None) -> dict[str, str]:
    """Return the entries of a dictionary whose keys and values are texts."""
    pairs: Any = zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else ()
    constant = ast.Constant
    return {
        str(key.value): str(value.value)
        for key, value in pairs
        if isinstance(key, constant) and isinstance(value, constant)
    }


def _constants(value: ast.expr | None) -> list[str]:
    """Return the texts anywhere in an expression, in their order."""
    nodes = ast.walk(value) if value is not None else ()
    found = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [str(node.value) for node in sorted(found, key=lambda node: (node.lineno, node.col_offset))]


def _raises_about(path: Path, name: str) -> bool:
    """Return whether a module raises an error if a condition holds that mentions this name or attribute."""
    return any(
        isinstance(node, ast.If)
        and any(isinstance(inner, ast.Raise) for inner in node.body)
        and any(name in {getattr(part, "id", ""), getattr(part, "attr", "")} for part in ast.walk(node.test))
        for node in ast.walk(ast.parse(_text(path)))
    )
