"""A dot with an error bar for each of several arms, one below the other.

Labels stand left of the marks and values right of them, each in a column of its own; long labels are broken into two
lines, so that a phone shows what a screen shows. Colours have a legend where several arms share one.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from qarat.surfaces.page.figures.base import Figure, chart
from qarat.surfaces.tables.data import DataTable, numbers, table, texts
from qarat.surfaces.tables.wording import decimals, fixed, interval

_LINE, _BETWEEN = 15, 10  # pixels: of a label's line, and from one arm to the next beside those
_WIDE, _LINES = 30, 2  # characters of a label's line, and most lines: the table has it whole


@dataclass(frozen=True)
class Arm:
    """One row of the figure.

    Attributes:
        label: What was measured.
        value: In the figure's unit.
        low: End of its 95 % interval; NaN where there is none.
        high: The other end.
        group: Arms of one group share a colour.
        details: Further cells of the table, one for each of the figure's further columns.
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    group: str = ""
    details: tuple[str, ...] = ()


def intervals(
    key: str,
    title: str,
    caption: str,
    arms: Sequence[Arm],
    *,
    unit: str,
    reference: float | None = None,
    limit: tuple[float, str] | None = None,
    groups: Sequence[str] = (),
    columns: Sequence[str] = (),
    noun: str = "arm",
    told: bool = False,
) -> Figure:
    """Arms as dots with intervals.

    Args:
        key: Of the figure.
        title: Of the figure.
        caption: Of the figure.
        arms: From top to bottom; those without a finite value are in the table alone.
        unit: Of the values, in words.
        reference: Where a line marks what the arms are compared with.
        limit: Where a broken line marks a bound, and its name.
        groups: Order of the groups, which decides their colours; empty takes them as they come.
        columns: Headers of the arms' details.
        noun: What an arm is: header of its label in the table.
        told: Whether the table is seen without being asked for.
    """
    digits = decimals([arm.value for arm in arms], least=2)
    shown = _table(arms, noun, unit, columns, digits)
    drawn = _rows(arms, shown, digits)
    rows = {
        "arms": drawn,
        "reference": [] if reference is None else [{"at": reference}],
        "limit": [] if limit is None else [{"at": limit[0], "name": limit[1]}],
    }
    there = list(dict.fromkeys(arm.group for arm in arms))
    order = list(groups) or there
    labels = _wrapped(arms)
    step = _BETWEEN + _LINE * max(map(len, labels), default=1)
    legend = {"values": [g for g in order if g in there], "columns": 2, "offset": 22}
    drawing = chart(
        "intervals",
        shown,
        rows,
        height=step * len(drawn),
        unit=unit,
        groups=order,
        zero=reference == 0,
        legend=legend if 1 < len(there) < len(arms) else None,
        labels=f"{json.dumps(labels)}[datum.value]",
        values=f"{json.dumps([row['shown'] for row in drawn])}[datum.value]",
    )
    return Figure(key, title, caption, drawing, shown, told)


def _wrapped(arms: Sequence[Arm]) -> list[list[str]]:
    """Labels of the arms that are drawn, in lines."""
    drawn = [arm.label for arm in arms if math.isfinite(arm.value)]
    return [textwrap.wrap(label, _WIDE, max_lines=_LINES, placeholder=" …") for label in drawn]


def _table(arms: Sequence[Arm], noun: str, unit: str, columns: Sequence[str], digits: int) -> DataTable:
    rows = (
        (arm.label, fixed(arm.value, digits, sign=True), interval((arm.low, arm.high), digits), *arm.details)
        for arm in arms
    )
    return table((*texts(noun), *numbers(unit, "95 % interval", *columns)), rows).used()


def _rows(arms: Sequence[Arm], table: DataTable, digits: int) -> list[dict[str, object]]:
    """The data of the arms that can be drawn; one without an interval has a bar of no length."""
    return [
        {
            **table.details(i),
            "row": place,
            "group": arm.group,
            "value": arm.value,
            "low": arm.low if math.isfinite(arm.low) else arm.value,
            "high": arm.high if math.isfinite(arm.high) else arm.value,
            "shown": fixed(arm.value, digits, sign=True),
        }
        for place, (i, arm) in enumerate((i, arm) for i, arm in enumerate(arms) if math.isfinite(arm.value))
    ]
