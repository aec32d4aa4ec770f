"""Values against values: lines, dots or both, with error bars, a bound, or the diagonal of equality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from qarat.surfaces.page.figures.base import Figure, data, log_ticks, tooltips
from qarat.surfaces.page.figures.series import Axis, Series, drawable, series_table
from qarat.surfaces.tables.data import DataTable

_HEIGHT = 300  # pixels
_PHONE, _SYMBOL, _CHARACTER = 330, 22, 7  # pixels: of a legend on a phone, and of what an entry is made of
_ABOVE = 26  # pixels from the chart to its legend, with the title of the vertical axis between them
# 7B, where SI would say 7G; a thousandth is no milli.
_DECADES = "datum.value < 1e4 ? format(datum.value, '~g') : replace(format(datum.value, '~s'), 'G', 'B')"


def curve(
    key: str,
    title: str,
    caption: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    noun: str = "point",
    limit: tuple[float, str] | None = None,
    diagonal: bool = False,
    labelled: bool = False,
    ordered: bool = False,
) -> Figure:
    """Series as lines and dots.

    Args:
        key: Of the figure.
        title: Of the figure.
        caption: Of the figure.
        series: In the order of their colours.
        x: First axis.
        y: Second axis.
        noun: What a point is: header of its label in the table.
        limit: A bound on y, and its name.
        diagonal: Whether a line marks where x equals y.
        labelled: Whether points carry their labels.
        ordered: Whether the groups run from small to large, so that one colour darkens along them.
    """
    table = series_table(series, x, y, noun)
    marked, lines = _marked(series, x, y, table), _lines(series, x, y)
    colour, drawn = _colour(series, ordered), [*marked, *lines]
    across, up = _along(alt.X, x, _extent(drawn, "x")), _along(alt.Y, y, _extent(drawn, "y"))

    def layer(rows: Sequence[dict[str, Any]], **more: Any) -> alt.Chart:
        return alt.Chart(data(rows)).encode(x=across("x"), y=up("y"), **more)

    layers = _limit(*limit, up) if limit is not None else []
    if diagonal:
        ends = _extent([{"at": row[axis]} for row in drawn for axis in ("x", "y")], "at")
        layers.append(layer([{"x": v, "y": v} for v in ends]).mark_line(style="limit"))
    if lines:
        layers.append(layer(lines, color=colour, detail="series:N", order="place:Q").mark_line(style="fit"))
    if bars := [row for row in marked if "x_low" in row]:
        layers.append(layer(bars, color=colour, x2="x_high:Q").mark_rule(style="error").encode(x=across("x_low")))
    if bars := [row for row in marked if "y_low" in row]:
        layers.append(layer(bars, color=colour, y2="y_high:Q").mark_rule(style="error").encode(y=up("y_low")))
    for style in ("dot", "open"):
        if dots := [row for row in marked if row["mark"] == style]:
            layers.append(layer(dots, color=colour, tooltip=tooltips(table)).mark_point(style=style))
    if labelled:
        named = layer(marked, text="label:N")
        layers += [named.mark_text(style=style, align="left", dx=9, dy=-9) for style in ("halo-note", "note")]
    return Figure(key, title, caption, alt.LayerChart(layer=layers, height=_HEIGHT), table)


def _colour(series: Sequence[Series], ordered: bool) -> alt.Color:
    """The colour of each group, and the legend where there are several."""
    groups = list(dict.fromkeys(s.colour for s in series))
    return alt.Color(
        "group:O" if ordered else "group:N",
        sort=groups,
        scale=alt.Scale(domain=groups, range="ramp" if ordered else "category"),
        legend=alt.Legend(offset=_ABOVE, columns=_legend_columns(groups)) if len(groups) > 1 else None,
    )


def _legend_columns(groups: Sequence[str]) -> int:
    """Entries in one row of the legend, so that a phone shows them whole."""
    return max(1, _PHONE // (_SYMBOL + _CHARACTER * max(map(len, groups))))


def _extent(rows: Sequence[dict[str, Any]], axis: str) -> tuple[float, float]:
    """Least and greatest value along an axis, ends of error bars included."""
    values = [row[field] for row in rows for field in (axis, f"{axis}_low", f"{axis}_high") if field in row]
    return min(values, default=1.0), max(values, default=1.0)


def _along(channel: Any, axis: Axis, extent: tuple[float, float]) -> Callable[[str], Any]:
    """The encoding of a position by a field."""
    ticks: dict[str, Any] = {"tickCount": 6}
    if axis.ticks or axis.log:
        ticks = {"values": list(axis.ticks) or log_ticks(*extent)}
    if axis.log:
        ticks["labelExpr"] = _DECADES
    elif axis.digits == 0:
        ticks["format"] = "d"
    zero = alt.Undefined if axis.log else axis.zero  # a logarithm has none
    scale = alt.Scale(type="log" if axis.log else "linear", nice=False, padding=12, zero=zero)

    def encode(field: str) -> Any:
        return channel(f"{field}:Q", title=axis.title, scale=scale, axis=alt.Axis(**ticks))

    return encode


def _marked(series: Sequence[Series], x: Axis, y: Axis, table: DataTable) -> list[dict[str, Any]]:
    """The points that are drawn, or whose intervals are, each with its row of the table."""
    dots = [(s, d) for s in series if s.listed for d in s.dots]
    drawn = [(i, s, d) for i, (s, d) in enumerate(dots) if drawable(d.x, x) and drawable(d.y, y)]
    # A logarithmic axis has no place for the end of a bar that reaches zero: it ends below the lowest point.
    floors = {axis: min((getattr(d, axis) for _, _, d in drawn), default=1.0) / 2 for axis in ("x", "y")}
    rows: list[dict[str, Any]] = []
    for i, s, d in drawn:
        mark = ("open" if d.least else "dot") if s.marked else ""
        row = {**table.details(i), "group": s.colour, "label": d.label, "mark": mark, "x": d.x, "y": d.y}
        for name, axis, ends in (("x", x, d.x_range), ("y", y, d.y_range)):
            if ends and all(map(math.isfinite, ends)):
                low, row[f"{name}_high"] = ends
                row[f"{name}_low"] = max(low, floors[name]) if axis.log else low
        rows.append(row)
    return rows


def _lines(series: Sequence[Series], x: Axis, y: Axis) -> list[dict[str, Any]]:
    return [
        {"series": s.name, "group": s.colour, "place": place, "x": d.x, "y": d.y}
        for s in series
        if s.line
        for place, d in enumerate(s.dots)
        if drawable(d.x, x) and drawable(d.y, y)
    ]


def _limit(at: float, name: str, up: Callable[[str], Any]) -> list[alt.Chart]:
    """A broken line across, and its name at the right end."""
    base = alt.Chart(data([{"at": at, "name": name}])).encode(y=up("at"))
    text = base.mark_text(style="note", align="right", baseline="bottom", dy=-4)
    return [base.mark_rule(style="limit"), text.encode(x=alt.value("width"), text="name:N")]
