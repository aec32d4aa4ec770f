"""Loss against what a plan spends: what a search measured and predicted, and the landscape that advice has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.tables.wording import count
from qarat.values.budgets import LossBudget, parse_budget
from qarat.values.records.advice import Advice, AdvisedScheme
from qarat.values.records.search import SearchResult, SearchTrial, pareto

_AXES = {
    "ratio": Axis("low share", digits=3),
    "bits": Axis("bits per weight", digits=2),
    "megabytes": Axis("MB of weights and caches", digits=3),
}
_LOSS = "loss over float (nats per token)"


def frontier(search: SearchResult, axis: str) -> Figure:
    """Every plan that a search measured, with its prediction, the budgets, and the plan that each chose.

    Args:
        search: With a trial that was measured.
        axis: ``ratio``, ``bits`` or ``megabytes``.
    """
    trials = [t for t in search.trials if not t.failure]
    best = pareto(trials, search.axis)
    where = {t: getattr(t, axis) for t in trials}
    expected: tuple[Dot, ...] = ()
    if any(math.isfinite(t.predicted) for t in trials) and search.correction.pairs:
        expected = tuple(
            Dot(where[t], search.correction.apply(t.predicted), label=t.label)
            for t in sorted(trials, key=lambda t: where[t])
        )
    chosen = tuple(
        Dot(where[search.trials[r.trial]], lost.nats, y_range=lost.interval, label=r.budget)
        for r in search.reached
        if r.trial >= 0 and math.isfinite((lost := search.on_report(r)).nats)
    )
    beaten = _measured([t for t in trials if t not in best], where)
    series = [
        Series("measured, and none is both cheaper and better", _measured(best, where)),
        Series("chosen, on text not seen before", chosen, line=False, named=True),
        Series("measured, and another is", beaten, line=False),
        Series("predicted, corrected by what was measured", expected, marked=False, bars=True),
    ]
    budgets = [b for b in (parse_budget(r.budget) for r in search.reached) if isinstance(b, LossBudget)]
    return curve(
        f"frontier-{axis}",
        "Loss against the share that is low" if axis == "ratio" else f"Loss against {_AXES[axis].title}",
        f"{count(len(trials), 'plan')} measured on the selection text. Bars: 95 %, paired with float by window.",
        [s for s in series if s.dots],
        _AXES[axis],
        Axis(_LOSS, zero=True),
        noun="plan",
        limits=[(b.nats, f"budget {b.spelling}") for b in budgets],
    )


def _measured(trials: Sequence[SearchTrial], where: Mapping[SearchTrial, float]) -> tuple[Dot, ...]:
    dots = (Dot(where[t], t.damage.nats, y_range=t.damage.interval, label=t.label) for t in trials)
    return tuple(sorted(dots, key=lambda dot: dot.x))


def price_of_bits(advice: Advice) -> Figure:
    """Every scheme by its bits: predicted with nothing done, and with its recipe; and what was measured.

    Args:
        advice: With a scheme of weights.
    """

    def dots(loss: str, schemes: Iterable[AdvisedScheme]) -> tuple[Dot, ...]:
        return tuple(Dot(s.bits, getattr(s, loss), label=s.name) for s in schemes)

    of_weights = [s for s in advice.schemes if not s.is_of_caches]
    low = [s for s in of_weights if s.is_low]
    measured = [(s, advice.measured[s.name]) for s in low if s.name in advice.measured]
    tried = tuple(Dot(s.bits, lost.nats, y_range=lost.interval, label=s.name) for s, lost in measured)
    series = [
        Series("with its recipe, predicted", dots("predicted", low), line=False),
        Series("everything low, nothing done, predicted", dots("naive", of_weights), line=False),
        Series("with its recipe, measured", tried, line=False, named=True),
    ]
    return curve(
        "landscape",
        "Loss against bits per weight",
        "A recipe rewrites the model and leaves so many sites in float that the budget is kept, which costs bits. "
        "Bars: 95 %, paired with float by window. Losses at or below zero stand in the table alone.",
        [s for s in series if s.dots],
        _AXES["bits"],
        Axis(_LOSS, log=True),
        noun="scheme",
        limits=[(advice.budget_nats, f"budget {advice.budget}")],
    )
