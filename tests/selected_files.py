"""Find test files that need not be imported, because `pytest -m` selects none of their tests."""

from __future__ import annotations

import re

_ANY_OF = re.compile(r"\w+( or \w+)*")
_NONE_OF = re.compile(r"not \w+( and not \w+)*")
_MODULE_MARKS = re.compile(r"^pytestmark = (\[.*?\]$|.*?$)", re.MULTILINE | re.DOTALL)


def has_no_selected_test(source: str, expression: str) -> bool:
    """Return True if no test in a file can match an expression of marks; False in doubt.

    Two forms of expressions are known. `a or b` matches nothing in a file that mentions neither mark. `not a and not b`
    matches nothing in a file where one of them marks the whole module.
    """
    if _ANY_OF.fullmatch(expression):
        return not any(f"mark.{name}" in source for name in expression.split(" or "))
    if _NONE_OF.fullmatch(expression):
        marks = "\n".join(found[1] for found in _MODULE_MARKS.finditer(source))
        return any(re.search(rf"\bmark\.{name}\b", marks) for name in re.findall(r"not (\w+)", expression))
    return False
