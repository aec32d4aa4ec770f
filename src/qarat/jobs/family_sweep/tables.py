"""A sweep as the tables that laws are fitted to: one row a plan, and one row a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qarat.stages.laws.tables import Table
from qarat.values.budgets import parse_loss_budget
from qarat.values.records.family import FamilyPoint, FamilySweep
from qarat.values.records.law_data import Measurement
from qarat.values.records.ratios import RatioReach

_SOURCE = "qarat sweep"
_SIZE = {
    "parameters": "size is the parameters of all sites, of which Q_r is a share; embeddings, head, norms are outside",
    "macs": "size is the parameters of all sites; embeddings, head, norms are outside; Q_r is a share of the "
    "multiplications, those of attention products among them",
}
_ALL = 1 - 1e-9  # a ratio, summed up site by site
_BLOCK = "block is the mean number of weights that share a scale"


def loss_table(sweep: FamilySweep) -> Table:
    """What every measured plan loses on the report tokens, each plan once."""
    rows = [row for point in sweep.points for row in _losses(sweep, point)]
    how = f"Best predicted plan at each ratio, its loss over float paired by windows; {_SIZE[sweep.basis]}; {_BLOCK}"
    return Table(
        "sweep", f"{sweep.family}, loss increase against ratio, {sweep.planning}", _SOURCE, how, (), tuple(rows)
    )


def budget_table(sweep: FamilySweep) -> Table:
    """The highest Q_r within each budget, as in the second founding paper's Fig. 6; budgets met by no plan have no row.

    Neither have those met with everything low, of which it is not known how far they reach: the defects name them. The
    value is the budget itself: what the plan was allowed to lose on the selection tokens, not what it lost.
    """
    rows = [row for point in sweep.points for row in _budgets(sweep, point)]
    reached = "Highest ratio of a measured plan that keeps the budget on the selection tokens"
    how = f"{reached}; {_SIZE[sweep.basis]}; {_BLOCK}"
    title = f"{sweep.family}, the ratio that loss budgets allow, {sweep.planning}"
    defects = tuple(defect for point in sweep.points for defect in _bounds(point))
    return Table("budgets", title, _SOURCE, how, defects, tuple(rows))


def _losses(sweep: FamilySweep, point: FamilyPoint) -> Iterator[Measurement]:
    plans = [plan for plan in point.plans if not math.isnan(plan.report.nats)]
    for plan in dict.fromkeys(plans):  # two ratios may have come to one plan
        error = _known(plan.report.standard_error)
        yield _row(sweep, point, plan.ratio, plan.bits, "loss-increase", plan.report.nats, error)


def _budgets(sweep: FamilySweep, point: FamilyPoint) -> Iterator[Measurement]:
    for reach in point.reached:
        if not math.isnan(reach.plan.ratio) and not _saturated(reach):
            increase = 100 * math.expm1(parse_loss_budget(reach.budget).nats)
            yield _row(sweep, point, reach.plan.ratio, reach.plan.bits, "perplexity-increase", increase, None)


def _bounds(point: FamilyPoint) -> Iterator[str]:
    """The budgets of a point that say no more than that its ratio could be higher, if any."""
    met = [reach.budget for reach in point.reached if _saturated(reach)]
    if met:
        where = f"{point.model}, {point.format}, block {point.block:.4g}"
        yield f"{where}: everything low meets {', '.join(met)}, so that 1 is a bound and no measurement: no row"


def _saturated(reach: RatioReach) -> bool:
    return reach.plan.ratio >= _ALL


def _row(
    sweep: FamilySweep, point: FamilyPoint, ratio: float, bits: float, metric: str, value: float, error: float | None
) -> Measurement:
    return Measurement(
        source=_SOURCE,
        family=sweep.family,
        model=point.model,
        size=point.size,
        tokens=_known(point.tokens),
        format=point.format,
        planning=sweep.planning,
        granularity=point.granularity,
        ratio_basis=sweep.basis,
        ratio=ratio,
        block=point.block,
        bits=bits,
        metric=metric,
        value=value,
        base_value=None,
        higher_is_better=False,
        standard_error=error,
        evaluation=point.evaluation,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
