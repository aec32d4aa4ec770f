"""Protection: which sites to keep above the low scheme; chosen exactly by predicted prices, confirmed by measurement.

Each unit left low has a price, and protecting it costs bits. So "the cheapest set that leaves at most so much predicted
damage" is a knapsack, and is solved exactly. Prices do not add up to the loss (together sites lose more, or less), but
the loss grows with their sum: every measured plan anchors what the sum means, and the next one is the cheapest set at
which the line between the tightest plan that fails the budget and the cheapest that meets it comes down to the budget.
A handful of plans is measured, whatever the number of sites.

What is given up: units whose prices are wrong against each other are not told apart by measurement. Wrong prices cost
bits, not the budget, since only a plan that was measured within it is taken as meeting it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from qarat.ground.runtime import Progress, no_progress
from qarat.stages.choose.candidates import Candidates, price_of
from qarat.stages.choose.trials import PlanMeter
from qarat.values.budgets import LossBudget
from qarat.values.plans import Plan
from qarat.values.records.prices import NATS, Protection, Trial
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.schemes import Scheme
from qarat.values.units import Unit

MOST = 5  # plans measured on the way to the budget, the one that protects nothing included and float not
MORE = 2  # plans beyond those, only while none that was measured meets the budget
MARGIN = (
    0.95  # of what the budget leaves is aimed at: losses bend upwards more often than down, and a miss costs a plan
)
CLOSE = 0.01  # of the size of the cheapest plan within the budget; what would save less is not measured


def rank_by_damage(units: Sequence[Unit], damages: Mapping[str, float]) -> tuple[Unit, ...]:
    """Units by damage per parameter, the dearest first.

    Args:
        units: To be ranked.
        damages: Price by site, for every site of the units.
    """
    return tuple(sorted(units, key=lambda u: -sum(damages[s] for s in u.sites) / u.parameters))


class Ranking(NamedTuple):
    """Candidates for protection, and what leaving them low is predicted to cost.

    Attributes:
        units: The first to be protected first, where a number says how many.
        order: What priced or chose them, in words.
        damages: Price of each of their sites in the low scheme.
        exactly: Protect just so many of the first; None lets prices and the budget decide.
        unit: Of the prices.
    """

    units: tuple[Unit, ...]
    order: str
    damages: Mapping[str, float]
    exactly: int | None = None
    unit: str = NATS


def protect_until(
    naive: Plan,
    ranking: Ranking,
    protect: Scheme,
    budget: LossBudget,
    meter: PlanMeter,
    *,
    most: int | None = None,
    progress: Progress = no_progress,
) -> tuple[Plan, Protection]:
    """Find the cheapest set of units whose protection keeps the budget.

    Args:
        naive: The plan that protects nothing.
        ranking: Candidates and their prices.
        protect: What protected sites get.
        budget: The loss over float that is allowed.
        meter: Losses of plans on the selection tokens.
        most: Only so many of the first candidates may be protected, unless the ranking says how many; None: all.
        progress: Called after every measurement.

    Returns:
        The plan, and the measurements behind it: of float and at most `MOST` + `MORE` plans; of float and at most two
        where the ranking says how many to protect.
    """
    bench = _Bench(naive, ranking, protect, meter, progress)
    if ranking.exactly is None:
        candidates = Candidates(naive, ranking.units[:most], ranking.units, ranking.damages, protect)
        tried, chosen, verdict = _by_price(bench, candidates, budget)
    else:
        tried, chosen, verdict = _as_asked(bench, ranking.units[: ranking.exactly], budget)
    bench.finish()
    plan = msgspec.structs.replace(bench.plan(chosen.trial.sites), note=verdict)
    trials, predicted = tuple(t.trial for t in tried), tuple(t.predicted for t in tried)
    belongs_to = meter.blank.provenance, ranking.order, budget.spelling, budget.nats
    return plan, Protection(*belongs_to, trials, predicted, chosen.trial.sites, verdict, ranking.unit)


class _Tried(NamedTuple):
    """A measured plan: what it protects, its price and cost, and what it loses.

    Attributes:
        units: Protected.
        predicted: Summed prices of the units left low.
        cost: Of the protection, as `Candidates` counts it.
        trial: Loss over float.
    """

    units: tuple[Unit, ...]
    predicted: float
    cost: int
    trial: Trial

    @property
    def loss(self) -> float:
        """Over float, nats per token."""
        return self.trial.damage.nats


_Choice = tuple[list[_Tried], _Tried, str]
"""The plans in the order measured, the one that was chosen, and why in words."""


def _as_asked(bench: _Bench, wanted: tuple[Unit, ...], budget: LossBudget) -> _Choice:
    """Naive and the set that was asked for, whatever the budget."""
    tried = [bench.measured(units, 0) for units in dict.fromkeys([(), wanted])]
    chosen = tried[-1]
    met = "within" if chosen.loss <= budget.nats else "beyond"
    verdict = f"{len(wanted)} protected as asked for: loss {chosen.loss:.4f} nats over float, {met} {_words(budget)}"
    return tried, chosen, f"{verdict}; {_plans(tried)} measured"


def _by_price(bench: _Bench, candidates: Candidates, budget: LossBudget) -> _Choice:
    """The cheapest set within the budget."""
    tried = _approach(bench, candidates, budget.nats)
    if chosen := _cheapest_within(tried, budget.nats):
        number = len(chosen.units)
        what = f"{number} protected" if number else "nothing needs protection"
        loss = f"loss {chosen.loss:.4f} nats over float"
        return tried, chosen, f"{what}: {loss}, within {_words(budget)}; {_plans(tried)} measured"
    best = min(tried, key=lambda t: (t.loss, t.cost))
    held = f", or more protected than the {candidates.allowed} allowed" if candidates.are_limited else ""
    verdict = (
        f"{_words(budget)} is not met: the best of {_plans(tried)} measured protects {len(best.units) or 'nothing'} "
        f"and loses {best.loss:.4f} nats over float; a finer low scheme may do, and `qarat advise` prices a dozen{held}"
    )
    return tried, best, verdict


def _approach(bench: _Bench, candidates: Candidates, budget: float) -> list[_Tried]:
    """Measure plans that close in on the budget: naive, then each time the cheapest set for what may be left low."""

    def try_next(part: float) -> bool:
        """Whether there was another set to measure."""
        units = candidates.cheapest(part * _target(tried, budget))
        cost, met = candidates.cost(units), _cheapest_within(tried, budget)
        if units in [t.units for t in tried] or (met and met.cost - cost <= CLOSE * (candidates.size + met.cost)):
            return False
        tried.append(bench.measured(units, cost))
        return True

    tried = [bench.measured((), 0)]
    if tried[0].loss <= budget:
        return tried
    while len(tried) < MOST and try_next(1.0):
        pass
    part = 0.5
    while len(tried) < MOST + MORE and _cheapest_within(tried, budget) is None and try_next(part):
        part /= 2
    return tried


def _cheapest_within(tried: Sequence[_Tried], budget: float) -> _Tried | None:
    """The cheapest measured plan that meets the budget; None if none does."""
    return min((t for t in tried if t.loss <= budget), key=lambda t: (t.cost, t.loss), default=None)


def _tightest_beyond(tried: Sequence[_Tried], budget: float) -> _Tried:
    """Of the plans that fail the budget and leave more low than the cheapest that meets it, the one that leaves least.

    Naive is one of them, as long as it fails.
    """
    met = _cheapest_within(tried, budget)
    least = met.predicted if met else 0.0
    return min((t for t in tried if t.loss > budget and t.predicted >= least), key=lambda t: t.predicted)


def _target(tried: Sequence[_Tried], budget: float) -> float:
    """What may be left low, as a sum of prices, so that the loss stays just below the budget.

    The loss is taken as linear in that sum between the two plans about the budget. Before a plan meets it, protecting
    everything stands for one, with nothing left and nothing lost.
    """
    met, beyond = _cheapest_within(tried, budget), _tightest_beyond(tried, budget)
    left, loss = (met.predicted, met.loss) if met else (0.0, 0.0)
    return left + MARGIN * (budget - loss) / (beyond.loss - loss) * (beyond.predicted - left)


def _words(budget: LossBudget) -> str:
    return f"{budget.spelling} ({budget.nats:.4f} nats)"


def _plans(tried: Sequence[_Tried]) -> str:
    return "1 plan" if len(tried) == 1 else f"{len(tried)} plans"


class _Bench:
    """Measures plans that protect."""

    def __init__(self, naive: Plan, ranking: Ranking, protect: Scheme, meter: PlanMeter, progress: Progress) -> None:
        self._naive, self._ranking, self._protect, self._meter = naive, ranking, protect, meter
        self._progress, self._total = progress, 1 + (MOST if ranking.exactly is None else min(2, 1 + ranking.exactly))
        progress("protect", 0, self._total)
        self._float_loss = self._loss(naive.in_float(), "float")

    def measured(self, units: Sequence[Unit], cost: int) -> _Tried:
        """Protect these units; loss over float."""
        names = {s for u in units for s in u.sites}
        sites = tuple(s.name for s in self._naive.sites if s.name in names)
        label = f"{len(units)} protected" if units else "nothing protected"
        damage = paired_difference(self._loss(self.plan(sites), label), self._float_loss)
        low = (u for u in self._ranking.units if u not in units)
        predicted = math.fsum(price_of(u, self._ranking.damages) for u in low)
        return _Tried(tuple(units), predicted, cost, Trial(label, sites, damage))

    def plan(self, sites: Sequence[str]) -> Plan:
        """The naive plan with these sites protected, each with its reason."""
        unit = "nats" if self._ranking.unit == NATS else self._ranking.unit

        def reason(site: str) -> str:
            return f"protected: low it is predicted to cost {self._ranking.damages[site]:.4f} {unit}"

        return self._naive.with_schemes(dict.fromkeys(sites, self._protect), reason)

    def finish(self) -> None:
        """Tell the progress callback that no measurement follows."""
        self._progress("protect", self._meter.done, self._meter.done)

    def _loss(self, plan: Plan, label: str) -> Evaluation:
        return self._meter.loss(msgspec.structs.replace(plan, note=label), self._tell)

    def _tell(self) -> None:
        self._total = max(self._total, self._meter.done + 1)
        self._progress("protect", self._meter.done, self._total)
