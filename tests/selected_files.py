"""Files of tests that need not be imported for the marks that `pytest -m` selects."""

from __future__ import annotations

import re

_ANY_OF = re.compile(r"\w+( or \w+)*")
_NONE_OF = re.compile(r"not \w+( and not \w+)*")
_MODULE_MARKS = re.compile(r"^pytestmark = (\[.*?\]$|.*?$)", re.MULTILINE | re.DOTALL)


def has_no_selected_test(source: str, expression: str) -> bool:
    """Return whether no test of a file can match an expression of marks; False where that is not plain to see.

    Plain are `a or b` where the file mentions neither, and `not a and not b` where one is a mark of the whole module.
    """
    names = re.findall(r"\w+", expression)
    if _ANY_OF.fullmatch(expression) and "not" not in names:
        return not any(f"mark.{name}" in source for name in names if name != "or")
    if _NONE_OF.fullmatch(expression):
        marks = "\n".join(found[1] for found in _MODULE_MARKS.finditer(source))
        return any(re.search(rf"\bmark\.{name}\b", marks) for name in names if name not in {"not", "and"})
    return False
