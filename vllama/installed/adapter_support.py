"""Which architectures of the installed vLLM take LoRA adapters, read from its files without importing it.

Internal: the tables `_TEXT_GENERATION_MODELS` and `_MULTIMODAL_MODELS` (`vllm/model_executor/models/registry.py`) and
the classes that they name, whose bases and `embedding_modules` count; alike in 0.26 and 0.32
(`tests/installed/test_adapter_support.py` compares with what vLLM itself says).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from vllama.installed.registry import vllm_directory

_TABLES = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")
_MARK = "SupportsLoRA"
_EMBEDDINGS = "embedding_modules"
_PACKAGE = "vllm.model_executor.models."


@dataclass(frozen=True, slots=True)
class AdapterSupport:
    """Whether adapters are taken at all, and which embeddings they may change ("embed_tokens", "lm_head")."""

    takes: bool = False
    embeddings: frozenset[str] = frozenset()


@cache
def adapter_support(architecture: str) -> AdapterSupport | None:
    """Return how vLLM supports adapters for this architecture; None if its files do not tell."""
    root = vllm_directory()
    if root is None:
        return None
    models = root / "model_executor" / "models"
    named = _classes(models / "registry.py").get(architecture)
    return _support_of(models, *named) if named else None


def _classes(registry: Path) -> dict[str, tuple[str, str]]:
    """Return module and class of each architecture, without those that vLLM leaves to transformers."""
    found = {}
    for table in (value for name, value in _assignments(_parsed(registry).body) if name in _TABLES):
        if isinstance(table, ast.Dict):
            for key, value in zip(table.keys, table.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple):
                    module, name = (str(part.value) for part in value.elts if isinstance(part, ast.Constant))
                    found[str(key.value)] = (module, name)
    return found


def _support_of(models: Path, module: str, name: str) -> AdapterSupport | None:
    """Return what a class declares or inherits from another class of vLLM's models; None if the class is missing."""
    tree = _parsed(models / f"{module}.py")
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if found is None:
        return None
    homes = dict(_imported_models(tree))
    bases = [base.id for base in found.bases if isinstance(base, ast.Name)]
    origins = (homes.get(base, (module, base)) for base in bases)
    inherited = [support for origin in origins if (support := _support_of(models, *origin))]
    stated = [_keys(value) for name, value in _assignments(found.body) if name == _EMBEDDINGS]
    return AdapterSupport(
        takes=_MARK in bases or any(support.takes for support in inherited),
        embeddings=next(iter([*stated, *(support.embeddings for support in inherited)]), frozenset()),
    )


def _imported_models(tree: ast.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the names that a model's module imports from others beside it: each with its module and its name there."""
    for node in (node for node in tree.body if isinstance(node, ast.ImportFrom)):
        module = node.module or ""
        if node.level == 1 or module.startswith(_PACKAGE):
            home = module.removeprefix(_PACKAGE)
            yield from ((alias.asname or alias.name, (home, alias.name)) for alias in node.names)


def _assignments(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr | None]]:
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
            yield target.id, node.value


def _keys(value: ast.expr | None) -> frozenset[str]:
    keys = value.keys if isinstance(value, ast.Dict) else []
    return frozenset(str(key.value) for key in keys if isinstance(key, ast.Constant))


@lru_cache(maxsize=4)
def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text())
    except OSError:
        return ast.Module([], [])
