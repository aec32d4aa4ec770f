"""What a figure is: a definition, the table of its data, and the words around it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from qarat.surfaces.tables.data import DataTable, field_name

_MOST_TICKS = 7


@dataclass(frozen=True)
class Figure:
    """A chart with its data and its words.

    Attributes:
        key: Names its files and its place on the page.
        title: What it shows, in a few words.
        caption: What to see in it.
        chart: As wide as what it stands in.
        table: Its data.
    """

    key: str
    title: str
    caption: str
    chart: alt.Chart | alt.LayerChart | alt.FacetChart
    table: DataTable

    def definition(self) -> dict[str, Any]:
        """The Vega-Lite definition, checked against its schema, without any theme.

        Raises:
            altair.utils.schemapi.SchemaValidationError: If it is none.
        """
        whole = self.chart.properties(width="container").to_dict()
        for key in ("$schema", "config"):  # an address and altair's own theme
            whole.pop(key, None)
        return {**whole, "description": f"{self.title}. {self.caption}", "autosize": {"type": "fit-x", "resize": True}}


@dataclass(frozen=True)
class Folded:
    """Figures that a reader opens before they are drawn.

    Attributes:
        title: What they show.
        figures: In their order.
    """

    title: str
    figures: tuple[Figure, ...]


Part = Figure | Folded | str
"""What a section is made of: figures, folded or not, and markup of other kinds."""


def figures_in(parts: Iterable[Part]) -> list[Figure]:
    """Every figure of a section, folded or not."""
    figures: list[Figure] = []
    for part in parts:
        if not isinstance(part, str):
            figures += part.figures if isinstance(part, Folded) else [part]
    return figures


def data(rows: Sequence[Mapping[str, object]]) -> alt.InlineData:
    """Rows as a chart's inline data.

    Raises:
        ValueError: A number that JSON cannot hold.
    """
    for row in rows:
        if bad := [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]:
            raise ValueError(f"not finite: {', '.join(bad)} of {row}")
    return alt.InlineData(values=[dict(row) for row in rows])


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


def tooltips(table: DataTable) -> list[alt.Tooltip]:
    """What a mark shows on hover: its row of the table."""
    return [alt.Tooltip(field=field_name(name), type="nominal", title=name) for name in table.names]
