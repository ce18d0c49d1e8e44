"""What `installed_vllm` reads from vLLM's files, beside what vLLM itself says."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

import vllama
from vllama.installed import registry
from vllama.installed.registry import installed_vllm


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_the_installed_vllm_are_those_that_vllm_lists() -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    unusable = {
        name
        for package, names in registry._EXTRAS.items()
        if importlib.util.find_spec(package) is None
        for name in names
    }
    importlib.import_module("vllama.worker.plain_parsers")  # as vLLM does by --tool-parser-plugin
    assert installed_vllm().tool_parsers == set(ToolParserManager.list_registered()) - unusable
    assert installed_vllm().reasoning_parsers == set(ReasoningParserManager.list_registered()) - unusable


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_the_installed_deciding_architectures_are_those_that_vllm_lists() -> None:
    """vLLM has the table since 0.32."""
    strategies = importlib.import_module("vllm.entrypoints.generate.structured_decisions.strategies")
    assert installed_vllm().deciding == strategies.READ_STRATEGIES.keys() != set()


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_every_installed_tool_parser_can_be_imported() -> None:
    from vllm.tool_parsers import ToolParserManager

    importlib.import_module("vllama.worker.plain_parsers")
    for name in installed_vllm().tool_parsers:
        ToolParserManager.get_tool_parser(name)


def test_a_parser_of_our_own_brings_the_flag_with_which_vllm_loads_it() -> None:
    plugin = str(Path(vllama.__file__).with_name("worker") / "plain_parsers.py")

    assert Path(plugin).is_file()
    assert registry.plugin_flags("hermes", "qwen3") == ()
    assert registry.plugin_flags("bare_json", "") == ("--tool-parser-plugin", plugin)
    assert registry.plugin_flags("", "plain_think") == ("--reasoning-parser-plugin", plugin)


@pytest.mark.parametrize("text", ["OTHER = {'a': 1}", "TABLE = make()", ""])
def test_a_table_that_has_moved_or_changed_leaves_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "__init__.py"
    path.write_text(text)
    assert registry._keys(path, "TABLE") == frozenset()
    assert registry._keys(tmp_path / "missing.py", "TABLE") == frozenset()


def test_the_keys_of_a_table_are_read_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "__init__.py"
    path.write_text("import does_not_exist\nTABLE: dict = {'hermes': ('file', 'Class'), 'mistral': f()}\n")
    assert registry._keys(path, "TABLE") == {"hermes", "mistral"}
