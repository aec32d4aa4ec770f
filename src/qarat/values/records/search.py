"""Records of a search: every trial that was measured, what each budget reaches, and what finding out cost.

A choice is one option per unit, by index; options stand in the order of the menu, the cheapest first. So a search's
plans follow from its record and the base plan it began with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from qarat.ground.summaries import Summarized
from qarat.values.fingerprints import brief
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.prices import Correction
from qarat.values.records.scores import Evaluation, paired_difference

Choice = tuple[int, ...]
NOTHING = Difference(math.nan, math.nan, 0)
"""The loss of what was not measured."""
NO_CORRECTION = Correction(math.nan, math.nan, math.nan, 0, math.nan, math.nan)
"""What was not fitted."""


class SearchTrial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One plan that was tried.

    Attributes:
        label: Why it was tried: ``random 12 at 0.9``, ``predicted at 0.75``, …
        choice: Option of each unit.
        ratio: Q_r, in the result's basis.
        bits: A weight, scales included.
        predicted: Summed damage of its units, in the metric's unit; NaN where nothing was predicted.
        damage: Loss over float on the selection tokens; NaN where the measurement failed.
        failure: Why it failed; empty where it did not.
        megabytes: 10⁶ bytes of weights and of the keys and values of the result's `context`.
    """

    label: str
    choice: Choice
    ratio: float
    bits: float
    predicted: float
    damage: Difference
    failure: str = ""
    megabytes: float = math.nan

    def position(self, axis: str) -> float:
        """Where the trial stands on an axis; larger is cheaper: Q_r, or bits or megabytes with the sign turned."""
        return {"ratio": self.ratio, "bits": -self.bits, "megabytes": -self.megabytes}[axis]


class Reached(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a budget reaches.

    Attributes:
        budget: Spelling.
        trial: Index of the chosen trial; -1 where nothing meets the budget.
        low: Lower end of the 95 % interval of what is reachable, on the result's axis: from the paired standard errors
            of the trials on both sides of the budget. NaN where no trial lies beyond that end, but plans do; and where
            the budget is no loss.
        high: Upper end.
        verdict: In words.
        report: Its loss on the report tokens, nats of every window; empty where it was not measured.
    """

    budget: str
    trial: int
    low: float
    high: float
    verdict: str
    report: tuple[float, ...] = ()


class SearchCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a search spent, in block × token forwards.

    Attributes:
        pricing: For predictions: a forward counts one, a backward two, a recomputation, where memory asks for it, one.
        measuring: For the trials, by all calls: a search that was killed begins with cold caches.
    """

    pricing: int
    measuring: int


class SearchResult(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A search: every trial, what each budget reaches, and the cost.

    Attributes:
        provenance: Model and selection tokens.
        strategy: That proposed the trials.
        metric: Behind predictions; empty where the strategy makes none.
        granularity: ``matmul`` or ``layer``.
        basis: What Q_r counts: ``parameters`` or ``macs``.
        axis: What the curve is drawn over: ``ratio``, or ``bits`` where the menu has more than two schemes, or
            ``megabytes`` where it has schemes of caches.
        menu: Spelling of every option, the cheapest first: of two the low scheme, of more that with the fewest bits.
            Where caches have more options than projections, the first stands there several times.
        units: Label of every unit.
        base: Content hash of the plan that the units' options are put into.
        float_loss: On the selection tokens.
        float_report: On the report tokens, which no choice has seen.
        trials: In the order in which they were proposed.
        reached: One a budget.
        cost: Of it all.
        correction: Fitted to all measured plans: what their losses come to, given the sum of predictions. Of no pairs
            where there are no predictions in nats, fewer than three plans, or losses that fall as predictions rise.
        caches: What a cache gets of every option, in the same way; empty where caches are not decided.
        context: Tokens whose keys and values are counted in megabytes; 0 where caches are not decided.
    """

    provenance: Provenance
    strategy: str
    metric: str
    granularity: str
    basis: str
    axis: str
    menu: tuple[str, ...]
    units: tuple[str, ...]
    base: str
    float_loss: Evaluation
    float_report: Evaluation
    trials: tuple[SearchTrial, ...]
    reached: tuple[Reached, ...]
    cost: SearchCost
    correction: Correction = NO_CORRECTION
    caches: tuple[str, ...] = ()
    context: int = 0

    def facts(self) -> dict[str, str]:
        """What tells it from another."""
        return {
            "model": brief(self.provenance.model),
            "strategy": self.strategy,
            "plans": f"{len(self.trials):,}",
            "budgets": ", ".join(r.budget for r in self.reached),
        }

    def budget(self, spelling: str) -> Reached:
        """What a budget of the search reaches."""
        return next(reached for reached in self.reached if reached.budget == spelling)

    def report_loss(self, reached: Reached) -> Evaluation:
        """The loss of a budget's plan on the report tokens; only where it was measured."""
        return msgspec.structs.replace(self.float_report, label=reached.budget, nats=reached.report)

    def on_report(self, reached: Reached) -> Difference:
        """What a budget's plan loses over float on the report tokens; NaN where it was not measured."""
        return paired_difference(self.report_loss(reached), self.float_report) if reached.report else NOTHING


def interval_words(low: float, high: float) -> str:
    """The interval of what is reachable; one end where no trial lies beyond the other, empty where there is none."""
    if math.isnan(low) and math.isnan(high):
        return ""
    if math.isnan(high):
        return f"{low:.3f} or more"
    return f"{high:.3f} or less" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def pareto(trials: Sequence[SearchTrial], axis: str) -> tuple[SearchTrial, ...]:
    """The trials that no other beats in both cost and loss, the cheapest last: the curve.

    Args:
        trials: Of one search; failed ones are left out.
        axis: Of the search.
    """
    measured = sorted((t for t in trials if not t.failure), key=lambda t: (-t.position(axis), t.damage.nats))
    kept: list[SearchTrial] = []
    for trial in measured:
        if not kept or trial.damage.nats < kept[-1].damage.nats:
            kept.append(trial)
    return tuple(reversed(kept))
