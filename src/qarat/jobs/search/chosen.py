"""What a search makes of its trials: a plan for each budget, and what predictions come to."""

from __future__ import annotations

from collections.abc import Sequence

from qarat.ground.errors import UserError
from qarat.stages.choose.space import Space
from qarat.stages.prices.checking import FEWEST, fit_correction
from qarat.values.budgets import Budget, CostBudget
from qarat.values.records.prices import Correction
from qarat.values.records.search import NO_CORRECTION, Choice, Reached, SearchTrial


def correction_of(trials: Sequence[SearchTrial]) -> Correction:
    """What predictions come to; losses lost in noise cannot be fitted."""
    pairs = [(t.predicted, t.damage.nats) for t in trials if t.predicted > 0 and t.damage.nats > 0]
    try:
        return fit_correction(pairs) if len(pairs) >= FEWEST else NO_CORRECTION
    except UserError:  # losses fall where predictions rise: there is nothing that a correction could put right
        return NO_CORRECTION


def choice_of(budget: Budget, reached: Reached, trials: Sequence[SearchTrial], space: Space) -> Choice:
    """What is written for a budget: its plan; where nothing meets it the nearest there is, so that no file is missing.

    Nearest is the highest plan for a loss, and the cheapest that was tried for a cost.
    """
    if reached.trial >= 0:
        return trials[reached.trial].choice
    tried = [t for t in trials if not t.failure]
    if isinstance(budget, CostBudget) and tried:
        return max(tried, key=lambda t: t.position(space.axis)).choice
    return space.highest


def plan_file(budget: str) -> str:
    """Name of the file with the plan of a budget: ``plan-ppl+5pct.json``."""
    return f"plan-{budget.replace('%', 'pct')}.json"
