"""Blocks across, something of each block downwards: the layout that the spike map and the plan share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from qarat.surfaces.page.figures.base import data

_STEP = 26  # pixels from one row to the next


def cells(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> tuple[alt.Chart, int]:
    """The positions of cells, to be marked and coloured, and the height that they take in pixels.

    Args:
        rows: Each with ``block`` and ``row``.
        order: The values of ``row`` from top to bottom.
    """
    base = alt.Chart(data(rows)).encode(
        x=alt.X("block:O", title="block", axis=alt.Axis(labelAngle=0, labelOverlap=True, ticks=False, domain=False)),
        y=alt.Y("row:N", title=None, sort=list(order), axis=alt.Axis(labelLimit=120)),
    )
    return base, _STEP * len(order)
