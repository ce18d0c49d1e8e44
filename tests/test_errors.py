"""The tree of errors, and the texts that clients know."""

from __future__ import annotations

import inspect
import re

import pytest

from vllama import errors
from vllama.errors import (
    CloudDisabled,
    ModelNotFound,
    Overloaded,
    ServerRefused,
    VllamaError,
    WorkerDied,
)

_BRANCH = re.compile(r"(?P<indent>(?:[│ ]   )*)[├└]── (?P<name>\w+)(?P<meaning>.*)")


def drawn_tree() -> dict[str, str]:
    """Class name to the name of its parent, as the module's docstring draws them."""
    lines = inspect.cleandoc(errors.__doc__ or "").splitlines()
    start = lines.index("VllamaError")
    path, parents = ["VllamaError"], {}
    for line in lines[start + 1 :]:
        branch = _BRANCH.fullmatch(line)
        assert branch, f"not a branch of the tree: {line!r}"
        assert branch["meaning"].strip(), f"{branch['name']} is drawn without its meaning"
        depth = len(branch["indent"]) // 4 + 1
        path[depth:] = [branch["name"]]
        parents[branch["name"]] = path[depth - 1]
    return parents


def real_tree() -> dict[str, str]:
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, VllamaError)]
    return {cls.__name__: cls.__mro__[1].__name__ for cls in classes if cls is not VllamaError}


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    assert drawn_tree() == real_tree()


def test_every_error_says_what_it_stands_for() -> None:
    assert [name for name in real_tree() if not inspect.getdoc(getattr(errors, name))] == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ModelNotFound("Nope"), "model 'Nope' not found"),
        (CloudDisabled(), "ollama cloud is disabled: remote model is unavailable"),
        (CloudDisabled("web search is unavailable"), "ollama cloud is disabled: web search is unavailable"),
        (Overloaded(), "server busy, please try again.  maximum pending requests exceeded"),
        (
            WorkerDied(),
            (
                "model runner has unexpectedly stopped, this may be due to resource limitations "
                "or an internal error, check ollama server logs for details"
            ),
        ),
    ],
)
def test_texts_that_clients_may_search_for_are_ollamas_to_the_letter(error: VllamaError, text: str) -> None:
    assert str(error) == text


def test_a_model_that_is_not_found_keeps_the_spelling_of_the_request() -> None:
    assert ModelNotFound("SmolLM2").name == "SmolLM2"


def test_a_refusal_keeps_the_status_of_the_server() -> None:
    refusal = ServerRefused(404, "model 'x' not found")
    assert (refusal.status, str(refusal)) == (404, "model 'x' not found")
