"""Parsers and kinds of models of the installed vLLM, read without importing it to keep the gateway light.

Internal: the tables `_TOOL_PARSERS_TO_REGISTER` (`vllm/tool_parsers/__init__.py`), `_REASONING_PARSERS_TO_REGISTER`
(`vllm/reasoning/__init__.py`) and `_MULTIMODAL_MODELS` (`vllm/model_executor/models/registry.py`), alike in 0.26 and
0.32, and `READ_STRATEGIES` (`vllm/entrypoints/generate/structured_decisions/strategies.py`), which 0.26 lacks.
`tests/installed/test_registry.py` compares them with what vLLM itself says.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import vllama

OWN_TOOL_PARSERS = frozenset({"bare_json"})
OWN_REASONING_PARSERS = frozenset({"plain_think"})
"""What `vllama.worker.plain_parsers` adds to vLLM."""

_EXTRAS = {"cohere_melody": ("cohere_command3", "cohere_command4")}
"""Packages that vLLM does not require, and the parsers with which it does not start without them."""


@dataclass(frozen=True, slots=True)
class InstalledVllm:
    """The names that `--tool-call-parser` and `--reasoning-parser` take, and architectures.

    `multimodal` see or hear; `deciding` answer `/v1/systemone`.
    """

    tool_parsers: frozenset[str] = frozenset()
    reasoning_parsers: frozenset[str] = frozenset()
    multimodal: frozenset[str] = frozenset()
    deciding: frozenset[str] = frozenset()


@cache
def installed_vllm() -> InstalledVllm:
    """Read the tables; empty where no vLLM is installed or its tables have moved."""
    root = vllm_directory()
    if root is None:
        return InstalledVllm()
    unusable = {
        name for package, names in _EXTRAS.items() if importlib.util.find_spec(package) is None for name in names
    }
    tool = _keys(root / "tool_parsers" / "__init__.py", "_TOOL_PARSERS_TO_REGISTER")
    reasoning = _keys(root / "reasoning" / "__init__.py", "_REASONING_PARSERS_TO_REGISTER")
    return InstalledVllm(
        tool_parsers=(tool | OWN_TOOL_PARSERS if tool else tool) - unusable,
        reasoning_parsers=(reasoning | OWN_REASONING_PARSERS if reasoning else reasoning) - unusable,
        multimodal=_keys(root / "model_executor" / "models" / "registry.py", "_MULTIMODAL_MODELS"),
        deciding=_keys(root / "entrypoints" / "generate" / "structured_decisions" / "strategies.py", "READ_STRATEGIES"),
    )


def vllm_directory() -> Path | None:
    """Where the installed vLLM's modules are."""
    spec = importlib.util.find_spec("vllm")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def plugin_flags(tool_parser: str, reasoning_parser: str) -> tuple[str, ...]:
    """Return the flags that make vLLM load our own parsers, if one of them is requested."""
    plugin = str(Path(vllama.__file__).with_name("worker") / "plain_parsers.py")
    tool = ("--tool-parser-plugin", plugin) if tool_parser in OWN_TOOL_PARSERS else ()
    reasoning = ("--reasoning-parser-plugin", plugin) if reasoning_parser in OWN_REASONING_PARSERS else ()
    return (*tool, *reasoning)


def _keys(path: Path, table: str) -> frozenset[str]:
    try:
        module = ast.parse(path.read_text())
    except OSError:
        return frozenset()
    for node in module.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == table and isinstance(node, ast.Assign | ast.AnnAssign):
            value = node.value
            if isinstance(value, ast.Dict):
                return frozenset(str(key.value) for key in value.keys if isinstance(key, ast.Constant))
    return frozenset()
