"""A dot with an error bar for each of several arms, one below the other.

Labels stand above their lines instead of beside them, so that long ones need no column of their own and a phone shows
what a screen shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qarat.surfaces.page.figures.base import Figure, chart
from qarat.surfaces.tables.data import DataTable, numbers, table, texts
from qarat.surfaces.tables.wording import decimals, fixed, interval

_STEP = 46  # pixels from one arm to the next


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
    """
    digits = decimals([arm.value for arm in arms], least=2)
    shown = _table(arms, unit, columns, digits)
    drawn = _rows(arms, shown, digits)
    rows = {
        "arms": drawn,
        "reference": [] if reference is None else [{"at": reference}],
        "limit": [] if limit is None else [{"at": limit[0], "name": limit[1]}],
    }
    order = list(groups) or list(dict.fromkeys(arm.group for arm in arms))
    height, zero = _STEP * len(drawn), reference == 0
    return Figure(
        key, title, caption, chart("intervals", shown, rows, height=height, unit=unit, groups=order, zero=zero), shown
    )


def _table(arms: Sequence[Arm], unit: str, columns: Sequence[str], digits: int) -> DataTable:
    rows = (
        (arm.label, fixed(arm.value, digits, sign=True), interval((arm.low, arm.high), digits), *arm.details)
        for arm in arms
    )
    return table((*texts("arm"), *numbers(unit, "95 % interval", *columns)), rows)


def _rows(arms: Sequence[Arm], table: DataTable, digits: int) -> list[dict[str, object]]:
    """The data of the arms that can be drawn; one without an interval has a bar of no length."""
    return [
        {
            **table.details(i),
            "row": i,
            "group": arm.group,
            "value": arm.value,
            "low": arm.low if math.isfinite(arm.low) else arm.value,
            "high": arm.high if math.isfinite(arm.high) else arm.value,
            "shown": fixed(arm.value, digits, sign=True),
        }
        for i, arm in enumerate(arms)
        if math.isfinite(arm.value)
    ]
