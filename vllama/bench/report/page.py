"""A result as one HTML file: plots, figures and the environment, with nothing loaded from anywhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vllama.bench.cost import Cost
from vllama.bench.report.drawing import Scheme
from vllama.bench.report.figures import (
    columns_of,
    comparisons_of,
    findings_of,
    heading_of,
    machine_of,
    rows_of,
    systems_of,
    workload_of,
)
from vllama.bench.report.plots import Plot, plots_of
from vllama.bench.result import ExperimentResult

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"

# Colours that stand for the page's own, which differ between light and dark.
_VARIABLES = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--grid",
    "#040404": "--paper",
    **{f"#0505{i:02x}": f"--series-{i}" for i in range(6)},
}
_NAMED = list(_VARIABLES)
_PAGE = Scheme(_NAMED[0], _NAMED[1], _NAMED[2], _NAMED[3], tuple(_NAMED[4:]))


class _Picture(NamedTuple):
    name: str
    title: str
    caption: str
    svg: Markup


def page(result: ExperimentResult, costs: Sequence[Cost] = ()) -> str:
    """Return the HTML. Raises PlotsUnavailable."""
    rows = rows_of(result)
    columns = columns_of(rows)
    environment = Environment(
        loader=PackageLoader("vllama.bench.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        heading=heading_of(result),
        created=result.created,
        machine=machine_of(result),
        workload=workload_of(result),
        command=shlex.join(result.command),
        systems=systems_of(result),
        findings=findings_of(result),
        pictures=[_Picture(plot.name, plot.title, plot.caption, _inline(plot)) for plot in plots_of(result)],
        columns=columns,
        rows=[[column.text(row) for column in columns] for row in rows],
        comparisons=comparisons_of(result),
        money=[line for cost in costs for line in cost.arithmetic],
        details={
            "Environment": _json(result.environment),
            "Options": _json(result.options),
        },
    )


def _json(value: Mapping[str, object]) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _inline(plot: Plot) -> Markup:
    """Return the plot as an element of the page: its colours are the page's, its marks carry their texts."""
    text, tips = plot.svg(_PAGE)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(text)  # noqa: S314 - we have just written it
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.set("role", "img")
    root.set("aria-label", f"{plot.title}. {plot.caption}")
    for element in root.iter():
        _adapt(element, plot.name, tips)
    # What is left of text was escaped by the serialiser.
    return Markup(_recoloured(ET.tostring(root, encoding="unicode")))  # noqa: S704


def _adapt(element: ET.Element, prefix: str, tips: Mapping[str, str]) -> None:
    """Make identifiers unique on the page, and attach the text of a mark."""
    identifier = element.get("id", "")
    if identifier in tips:
        element.set("data-tip", tips[identifier])
    for name, value in element.attrib.items():
        if name == "id":
            element.set(name, f"{prefix}-{value}")
        elif name.endswith("href"):
            element.set(name, value.replace("#", f"#{prefix}-", 1))
        elif "url(#" in value:
            element.set(name, value.replace("url(#", f"url(#{prefix}-"))


def _recoloured(svg: str) -> str:
    return re.sub(r"#(0[1-4])\1\1\b|#05050[0-5]\b", lambda match: f"var({_VARIABLES[match[0]]})", svg)
