"""The plan as a strip: every site of every block by its scheme."""

from __future__ import annotations

from collections import Counter

from qarat.surfaces.page.figures.base import Figure, cells
from qarat.surfaces.tables.data import DataTable, numbers, table, texts
from qarat.surfaces.tables.wording import count, fixed
from qarat.values.plans import Assignment, Plan
from qarat.values.sites import short_name


def strip(plan: Plan) -> Figure:
    """Blocks across, sites down, coloured by scheme; the low scheme stands back.

    Attention products are left out where all of them stay in float, which the caption says then.

    Args:
        plan: Of a whole model.
    """
    projections = [a for a in plan.assignments if a.site.kind == "projection"]
    products = [a for a in plan.assignments if a.site.kind == "product"]
    idle = all(a.is_float for a in products)
    shown = projections if idle else [*projections, *products]
    sites = _table(plan, shown)
    rows = [
        {**sites.details(i), "block": a.site.block, "row": _leaf(a), "scheme": str(a.scheme)}
        for i, a in enumerate(shown)
    ]
    schemes = Counter(str(a.scheme) for a in projections)
    # The low scheme takes the colour that stands back, whether anything has it or not.
    order = [plan.low, *(s for s, _ in schemes.most_common() if s != plan.low)]
    order += sorted({str(a.scheme) for a in shown} - set(order))
    colour = {
        "field": "scheme",
        "type": "nominal",
        "scale": {"domain": order, "range": "ordinal"},
        "legend": {"columns": 1, "symbolType": "square"},
    }
    chart = cells(sites, {"cells": rows}, list(dict.fromkeys(_leaf(a) for a in shown)), colour)
    parts = [f"{count(n, 'projection')} in {scheme}" for scheme, n in schemes.most_common()]
    caption = "; ".join(parts) + "."
    if products and idle:
        caption += " The attention products stay in float."
    return Figure("plan", "Every site by its scheme", caption, chart, sites)


def _leaf(a: Assignment) -> str:
    return a.site.leaf.removesuffix("_proj")


def _table(plan: Plan, shown: list[Assignment]) -> DataTable:
    rows = [
        (
            short_name(a.site.name),
            str(a.scheme),
            f"{a.site.parameters:,}" if a.site.parameters else "",
            fixed(plan.site_bits(a) / a.site.parameters, 3) if a.site.parameters else "",
            a.reason,
        )
        for a in shown
    ]
    return table((*texts("site", "scheme"), *numbers("parameters", "bits per weight"), *texts("reason")), rows)
