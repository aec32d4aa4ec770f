"""What a figure is: a chart, the table of its data, and the words around it.

A chart is a template in `charts.json`, written in Vega-Lite's own language, with rows and a few values filled in. A
layer names the rows that it draws; one whose rows are empty is left out, so that templates need no conditions. What
several layers share stands among the template's ``parts``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qarat.surfaces.tables.data import DataTable, field_name

_MOST_TICKS = 7
_STEP = 26  # pixels from one row of cells to the next
_CHARTS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "charts.json").read_text("utf-8"))

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Figure:
    """A chart with its data and its words.

    Attributes:
        key: Names its files and its place on the page.
        title: What it shows, in a few words.
        caption: What to see in it.
        chart: As `chart` makes it; as wide as what it stands in.
        table: Its data.
        told: Whether the table is seen without being asked for.
    """

    key: str
    title: str
    caption: str
    chart: Mapping[str, Any]
    table: DataTable
    told: bool = False

    def definition(self) -> dict[str, Any]:
        """The Vega-Lite definition, without any theme."""
        beside = {"width": "container", "description": f"{self.title}. {self.caption}"}
        return {**self.chart, **beside, "autosize": {"type": "fit-x", "resize": True}}


def chart(template: str, table: DataTable, rows: Mapping[str, Rows], **values: Any) -> dict[str, Any]:
    """A chart from its template.

    Args:
        template: Its name in `charts.json`.
        table: Marks show their row of it on hover.
        rows: Of the layers, by the names that these have for them.
        **values: Of the template.

    Raises:
        ValueError: A number that JSON cannot hold.
    """
    for row in (row for named in rows.values() for row in named):
        if bad := [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]:
            raise ValueError(f"not finite: {', '.join(bad)} of {row}")
    tooltip = [{"field": field_name(name), "type": "nominal", "title": name} for name in table.names]
    values = {**values, "tooltip": tooltip}
    whole = dict(_CHARTS[template])
    values |= filled(whole.pop("parts", {}), values)
    whole["layer"] = [layer for layer in whole["layer"] if rows.get(layer["data"]["name"])]
    return {**filled(whole, values), "datasets": {name: list(named) for name, named in rows.items() if named}}


def cells(
    table: DataTable, rows: Mapping[str, Rows], order: Sequence[str], colour: object, across: str = "block"
) -> dict[str, Any]:
    """Blocks across, something of each block downwards: the layout that all maps share.

    Args:
        table: Of the cells.
        rows: Each with what is ``across`` and ``row``; all ``cells``, and of these those that are ``outlined`` or
            written on.
        order: The values of ``row`` from top to bottom.
        colour: Encoding of the cells' colour.
        across: What goes across, if it is no block; then in the order of the rows.
    """
    sort = "ascending" if across == "block" else None
    size = {"height": _STEP * len(order), "order": list(order)}
    return chart("cells", table, rows, **size, colour=colour, across=across, sort=sort)


def filled(template: Any, values: Mapping[str, Any]) -> Any:
    """A template with values in place of their names.

    Args:
        template: Where ``"@name"`` stands for a value, and ``"@": "name"`` in an object for what a value holds, which
            what stands beside it completes or replaces.
        values: By name.
    """
    if isinstance(template, dict):
        own = {key: filled(inner, values) for key, inner in template.items() if key != "@"}
        return {**values[template["@"]], **own} if "@" in template else own
    if isinstance(template, list):
        return [filled(inner, values) for inner in template]
    return values[template[1:]] if isinstance(template, str) and template.startswith("@") else template


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5 of every decade, or fewer where those would be many."""
    if not 0 < low <= high:
        return []
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 4)):
        ticks = [float(f"{d}e{exponent}") for exponent in decades if exponent % every == 0 for d in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _MOST_TICKS:
            break
    return ticks
