"""Removal of what has no finite value: a form that requires itself can never be written to its end."""

from __future__ import annotations

from typing import Any

Form = dict[str, Any]


def without_endless(root: Form, definitions: dict[str, Form]) -> Form | None:
    """Return the form with its definitions, without alternatives that never end; None if none is left."""
    ending: set[str] = set()
    while found := {name for name, form in definitions.items() if name not in ending and _ends(form, ending)}:
        ending |= found
    if not _ends(root, ending):
        return None
    kept = {name: _pruned(definitions[name], ending) for name in definitions if name in ending}
    form = _pruned(root, ending)
    return {**form, "$defs": kept} if kept else form


def _ends(form: Any, ending: set[str]) -> bool:
    """Return whether a form has a value whose references are all to definitions that end."""
    if form is False:
        return False
    if form is True or not form:
        return True
    if "$ref" in form:
        return _name(form) in ending
    if "anyOf" in form:
        return any(_ends(part, ending) for part in form["anyOf"])
    if "enum" in form:
        return bool(form["enum"])
    if form.get("type") == "object":
        return all(_ends(form["properties"][name], ending) for name in form.get("required", ()))
    if form.get("type") == "array":
        least, prefix = form.get("minItems", 0), form.get("prefixItems", [])
        parts = prefix[:least] if least <= len(prefix) else [*prefix, form.get("items", True)]
        return all(_ends(part, ending) for part in parts)
    return True


def _pruned(form: Any, ending: set[str]) -> Any:
    if isinstance(form, bool) or not form or "$ref" in form or "enum" in form:
        return form
    if "anyOf" in form:
        parts = [_pruned(part, ending) for part in form["anyOf"] if _ends(part, ending)]
        return parts[0] if len(parts) == 1 else {"anyOf": parts}
    pruned = dict(form)
    for keyword in ("properties", "patternProperties"):
        if keyword in form:
            kept = {name: _pruned(part, ending) for name, part in form[keyword].items() if _ends(part, ending)}
            pruned[keyword] = kept
    if not pruned.get("patternProperties", True):
        del pruned["patternProperties"]
    if "additionalProperties" in form:
        rest = form["additionalProperties"]
        pruned["additionalProperties"] = _pruned(rest, ending) if _ends(rest, ending) else False
    if "prefixItems" in form:
        return _pruned_tuple(pruned, ending)
    if "items" in form:
        if _ends(form["items"], ending):
            pruned["items"] = _pruned(form["items"], ending)
        else:
            return {"type": "array", "maxItems": 0}
    return pruned


def _pruned_tuple(form: Form, ending: set[str]) -> Form:
    prefix = form["prefixItems"]
    length = next((index for index, part in enumerate(prefix) if not _ends(part, ending)), len(prefix))
    form["prefixItems"] = [_pruned(part, ending) for part in prefix[:length]]
    if length == 0:
        return {"type": "array", "maxItems": 0}
    if length < len(prefix) or not _ends(form["items"], ending):
        form["items"] = False
        form.pop("maxItems", None)
    else:
        form["items"] = _pruned(form["items"], ending)
    return form


def _name(form: Form) -> str:
    return str(form["$ref"].rpartition("/")[2])
