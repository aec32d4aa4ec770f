"""Points with error bars, the series they make, the axes they lie along, and the table of them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
        bars: Whether the intervals of points that are not marked are drawn all the same, and the table has both.
        group: Series of one group share a colour and a place in the legend.
    """

    name: str
    dots: tuple[Dot, ...]
    line: bool = True
    marked: bool = True
    bars: bool = False
    group: str = ""

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
