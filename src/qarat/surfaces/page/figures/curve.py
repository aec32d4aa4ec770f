"""Values against values: lines, dots or both, with error bars, a bound, or the diagonal of equality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qarat.surfaces.page.figures.base import Figure, chart, log_ticks
from qarat.surfaces.page.figures.labels import PADDING, Places
from qarat.surfaces.tables.data import DataTable, numbers, table, texts
from qarat.surfaces.tables.wording import decimals, fixed
from qarat.values.records.law_data import spell_value


@dataclass(frozen=True)
class Axis:
    """What lies along one side of a chart.

    Attributes:
        title: With its unit.
        log: Whether it is logarithmic; values at or below zero are then in the table alone.
        ticks: Where it has ticks; empty leaves them to the chart.
        digits: Decimals in the table; None takes as many as show three digits of the largest.
        counts: Whether the values are numbers of parameters, in the table written 7B.
        zero: Whether the axis begins at zero.
    """

    title: str
    log: bool = False
    ticks: tuple[float, ...] = ()
    digits: int | None = None
    counts: bool = False
    zero: bool = False


@dataclass(frozen=True)
class Dot:
    """One point.

    Attributes:
        x: Along the first axis.
        y: Along the second.
        x_range: 95 % interval of x; empty for none.
        y_range: The same of y.
        label: What it is.
        least: Whether y is only known to be this or more: drawn open, and in the table with ≥.
    """

    x: float
    y: float
    x_range: tuple[float, ...] = ()
    y_range: tuple[float, ...] = ()
    label: str = ""
    least: bool = False


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: In the table, and in the legend unless there is a group.
        dots: Its points, in order.
        line: Whether a line joins them.
        marked: Whether the points themselves are drawn; if not, they are left out of the table too.
        bars: Whether points that are not marked stand in the table all the same, and their intervals, if they have any,
            are drawn as a band.
        group: Series of one group share a colour and a place in the legend.
        named: Whether the points carry their labels.
    """

    name: str
    dots: tuple[Dot, ...]
    line: bool = True
    marked: bool = True
    bars: bool = False
    group: str = ""
    named: bool = False

    @property
    def listed(self) -> bool:
        """Whether its points stand in the table."""
        return self.marked or self.bars

    @property
    def colour(self) -> str:
        """What decides its colour."""
        return self.group or self.name


def drawable(value: float, axis: Axis) -> bool:
    """Whether a value has a place on an axis."""
    return math.isfinite(value) and (value > 0 or not axis.log)


def series_table(series: Sequence[Series], x: Axis, y: Axis, noun: str) -> DataTable:
    """Every listed point; columns in which nothing stands are left out.

    Args:
        series: In the order of the rows.
        x: First axis.
        y: Second axis.
        noun: Header of the points' labels.
    """
    dots = [(s, d) for s in series if s.listed for d in s.dots]
    several = len({s.name for s, _ in dots}) > 1
    x_digits = decimals([d.x for _, d in dots]) if x.digits is None else x.digits
    y_digits = decimals([d.y for _, d in dots]) if y.digits is None else y.digits
    columns = numbers(x.title, f"{x.title}, 95 %", y.title, f"{y.title}, 95 %")
    rows = [
        (
            s.name if several else "",
            d.label,
            spell_value("size", d.x) if x.counts else fixed(d.x, x_digits),
            _spell_range(d.x_range, x_digits),
            f"{'≥ ' if d.least else ''}{fixed(d.y, y_digits)}",
            _spell_range(d.y_range, y_digits),
        )
        for s, d in dots
    ]
    return table((*texts("series", noun), *columns), rows).used()


def _spell_range(ends: tuple[float, ...], digits: int) -> str:
    """Empty where there is no interval, as with a single source of text."""
    return " to ".join(fixed(v, digits) for v in ends) if ends and all(map(math.isfinite, ends)) else ""


_PHONE, _SYMBOL, _CHARACTER = 330, 22, 7  # pixels: of a legend on a phone, and of what an entry is made of
_ABOVE = 26  # pixels from the chart to its legend, with the title of the vertical axis between them
_CLOSE = 0.05  # of an axis: from a label to the next
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
    limits: Sequence[tuple[float, str]] = (),
    diagonal: bool = False,
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
        limits: Bounds on y, and their names.
        diagonal: Whether a line marks where x equals y.
        ordered: Whether the groups run from small to large, so that one colour darkens along them.
    """
    table = series_table(series, x, y, noun)
    limits = [(at, name) for at, name in limits if at > 0 or not y.log]  # a logarithm has no place for the others
    marked, lines = _marked(series, x, y, table), _lines(series, x, y)
    drawn = [*marked, *lines]
    ends = _extent([{"at": row[axis]} for row in drawn for axis in ("x", "y")], "at") if diagonal else ()
    places = _places(marked, lines, [at for at, _ in limits], x, y)
    rows = {
        "limit": [places.along(at, name) for at, name in limits],
        "diagonal": [{"x": v, "y": v} for v in ends],
        "lines": lines,
        "x_bars": [row for row in marked if "x_low" in row],
        "bands": [row for row in marked if "y_low" in row and not row["mark"]],
        "y_bars": [row for row in marked if "y_low" in row and row["mark"]],
        "dot": [row for row in marked if row["mark"] == "dot"],
        "open": [row for row in marked if row["mark"] == "open"],
        "cut": [row for row in marked if "cut" in row],
        "named": [places.beside(row) for row in _named([row for row in marked if row["named"]], x, y)],
    }
    if rows["cut"]:
        caption += " An arrow: the bar goes on to zero or below, where a logarithm has no place."
    along = {"x": _along(x, _extent(drawn, "x")), "y": _along(y, _extent(drawn, "y"))}
    return Figure(key, title, caption, chart("curve", table, rows, **along, colour=_colour(series, ordered)), table)


def _places(
    marked: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]], limits: Sequence[float], x: Axis, y: Axis
) -> Places:
    """What is drawn, as labels are to keep off it."""
    level = [{"y": at} for at in (*limits, *([0.0] if y.zero and not y.log else []))]
    places = Places(_extent([*marked, *lines], "x"), _extent([*marked, *lines, *level], "y"), (x.log, y.log))
    places.mark((row["x"], row["y"]) for row in marked)
    for row in marked:
        places.line([(row["x"], row[end]) for end in ("y_low", "y_high") if end in row])
        places.line([(row[end], row["y"]) for end in ("x_low", "x_high") if end in row])
    for name in {row["series"] for row in lines}:
        places.line([(row["x"], row["y"]) for row in lines if row["series"] == name])
    for at in limits:
        places.line([(end, at) for end in places.x])
    return places


def _colour(series: Sequence[Series], ordered: bool) -> dict[str, Any]:
    """The colour of each group, and the legend where there are several."""
    groups = list(dict.fromkeys(s.colour for s in series))
    return {
        "field": "group",
        "type": "ordinal" if ordered else "nominal",
        "sort": groups,
        "scale": {"domain": groups, "range": "ramp" if ordered else "category"},
        "legend": {"offset": _ABOVE, "columns": _legend_columns(groups)} if len(groups) > 1 else None,
    }


def _legend_columns(groups: Sequence[str]) -> int:
    """Entries in one row of the legend, so that a phone shows them whole."""
    return max(1, _PHONE // (_SYMBOL + _CHARACTER * max(map(len, groups))))


def _extent(rows: Sequence[dict[str, Any]], axis: str) -> tuple[float, float]:
    """Least and greatest value along an axis, ends of error bars included."""
    values = [row[field] for row in rows for field in (axis, f"{axis}_low", f"{axis}_high") if field in row]
    return min(values, default=1.0), max(values, default=1.0)


def _along(axis: Axis, extent: tuple[float, float]) -> dict[str, Any]:
    """The encoding of a position, but for its field."""
    ticks: dict[str, Any] = {"tickCount": 6}
    if axis.ticks or axis.log:
        ticks = {"values": list(axis.ticks) or log_ticks(*extent)}
    if axis.log:
        ticks["labelExpr"] = _DECADES
    elif axis.digits == 0:
        ticks["format"] = "d"
    kind = {"type": "log"} if axis.log else {"type": "linear", "zero": axis.zero}  # a logarithm has no zero
    scale = {**kind, "nice": False, "padding": PADDING}
    return {"type": "quantitative", "title": axis.title, "scale": scale, "axis": ticks}


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
        row["named"] = s.named
        for name, axis, ends in (("x", x, d.x_range), ("y", y, d.y_range)):
            if ends and all(map(math.isfinite, ends)):
                low, row[f"{name}_high"] = ends
                row[f"{name}_low"] = max(low, floors[name]) if axis.log else low
                if mark and axis.log and low <= 0 and name == "y":
                    row["cut"] = True
        rows.append(row)
    return rows


def _named(rows: Sequence[dict[str, Any]], x: Axis, y: Axis) -> list[dict[str, Any]]:
    """Points that carry their labels; those so close that these would lie one on the other share one place."""

    def apart(a: dict[str, Any], b: dict[str, Any], along: str, axis: Axis) -> float:
        low, high, first, second = (math.log(v) if axis.log else v for v in (*_extent(rows, along), a[along], b[along]))
        return abs(first - second) / ((high - low) or 1.0)

    kept: list[dict[str, Any]] = []
    for row in rows:
        near = (other for other in kept if apart(row, other, "x", x) < _CLOSE and apart(row, other, "y", y) < _CLOSE)
        if (other := next(near, None)) is None:
            kept.append({**row})
        else:
            other["label"] += f", {row['label']}"
    return kept


def _lines(series: Sequence[Series], x: Axis, y: Axis) -> list[dict[str, Any]]:
    return [
        {"series": s.name, "group": s.colour, "place": place, "x": d.x, "y": d.y}
        for s in series
        if s.line
        for place, d in enumerate(s.dots)
        if drawable(d.x, x) and drawable(d.y, y)
    ]
