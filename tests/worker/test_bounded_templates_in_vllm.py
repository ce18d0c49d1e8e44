"""Costly templates through the functions of transformers and vLLM (0.26 to 0.33) that compile and render them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from client_conversations import SHAPES
from refusing_templates import REFUSING

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

POWER = "{{ (3**(10**9)) > 1 }}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set x = 'ab' * 99 %}" + "{% set x = x ~ x %}" * 40 + "{{ x|length }}"


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> Any:
    import jinja2.sandbox
    import transformers.utils.chat_template_utils as of_transformers

    from vllama.ollama.template_limits import limits, set_limits
    from vllama.worker.bounded_templates import register

    usual = limits()
    for module in (jinja2.sandbox, of_transformers):
        monkeypatch.setattr(module, "ImmutableSandboxedEnvironment", module.ImmutableSandboxedEnvironment)
    monkeypatch.setenv("VLLAMA_TEMPLATE_TIMEOUT", "300ms")
    register()
    yield
    set_limits(usual)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from vllama.worker.chat_templates import repair_for

    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>")))
    repair_for(made, "x:latest")
    return made


def rendered(template: str, messages: list[dict[str, Any]]) -> str:
    return str(tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False))


@pytest.mark.parametrize("template", [POWER, ENDLESS, DOUBLED])
def test_a_costly_template_is_refused_once_and_not_repaired(template: str) -> None:
    from vllama.ollama.template_budget import TemplateTooCostly

    with pytest.raises(TemplateTooCostly, match="the chat template cannot render these messages: the template"):
        rendered(template, [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])


@pytest.mark.parametrize("template", [POWER, ENDLESS, DOUBLED])
def test_vllm_looks_into_a_costly_template_without_computing(template: str) -> None:
    from vllm.renderers import hf

    assert hf._detect_content_format(template, default="string") == "string"
    tracked = getattr(hf, "_cached_resolve_chat_template_kwargs", None)
    if tracked is not None:
        tracked(template)


def _public_templates() -> list[str]:
    """Return templates of a folder that VLLAMA_TEST_TEMPLATES names, such as llama.cpp's `models/templates`."""
    folder = os.environ.get("VLLAMA_TEST_TEMPLATES")
    return [path.read_text() for path in sorted(Path(folder).glob("*.jinja"))] if folder else []


@pytest.mark.parametrize("template", [*REFUSING.values(), *_public_templates()])
def test_the_templates_of_public_families_render_as_before(template: str) -> None:
    import transformers.utils.chat_template_utils as of_transformers

    from vllama.ollama.bounded_jinja import BoundedEnvironment

    compiled = of_transformers._compile_jinja_template(template)
    assert isinstance(compiled.environment, BoundedEnvironment)
    tags = [type(extension) for extension in compiled.environment.extensions.values()]
    plain = BoundedEnvironment.__mro__[1](  # Jinja's own, whatever has been replaced
        trim_blocks=True, lstrip_blocks=True, extensions=tags
    )
    plain.filters["tojson"] = compiled.environment.filters["tojson"]
    plain.globals |= {name: compiled.environment.globals[name] for name in ("raise_exception", "strftime_now")}
    for messages, tools in SHAPES.values():
        given = {"messages": messages, "tools": tools, "bos_token": "<s>", "add_generation_prompt": True}
        assert _text_or_error(compiled, given) == _text_or_error(plain.from_string(template), given)


def _text_or_error(template: Any, given: dict[str, Any]) -> str:
    try:
        return str(template.render(**given))
    except Exception as error:  # noqa: BLE001 - a template may raise anything
        return f"{type(error).__name__}: {error}"
