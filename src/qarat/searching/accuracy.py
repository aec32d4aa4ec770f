"""Budgets of accuracy: how cheap a plan may be before a zero-shot task suffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qarat.budgets import AccuracyBudget
from qarat.errors import UserError
from qarat.records import TaskScore, ZeroShot
from qarat.searches import Reached, SearchTrial

__all__ = ["reach_accuracy"]


def reach_accuracy(
    budget: AccuracyBudget,
    curve: Sequence[tuple[int, SearchTrial]],
    float_score: ZeroShot,
    score: Callable[[SearchTrial], ZeroShot],
) -> Reached:
    """The cheapest plan of a curve whose accuracy keeps a budget, by bisection: accuracy is taken to fall with cost.

    Args:
        budget: The task, and how far accuracy may fall.
        curve: Trials with their indices, the cheapest last.
        float_score: Of the float model.
        score: Measures a trial's plan on the task.

    Raises:
        UserError: If the task has no accuracy.
    """
    base = _accuracy(float_score, budget.task)
    within, beyond = -1, len(curve)
    found: dict[int, TaskScore] = {}
    while beyond - within > 1:
        middle = (within + beyond) // 2
        found[middle] = _accuracy(score(curve[middle][1]), budget.task)
        if base.value - found[middle].value <= budget.drop:
            within = middle
        else:
            beyond = middle
    if within < 0:
        best = max((x.value for x in found.values()), default=math.nan)
        words = f"no plan that was tried keeps it: float {base.value:.3f}, the best of {len(found)} has {best:.3f}"
        return Reached(budget.spelling, -1, math.nan, math.nan, words)
    drop, error = base.value - found[within].value, _paired_error(base, found[within])
    words = (
        f"{curve[within][1].label}: accuracy {found[within].value:.3f}, float {base.value:.3f}; it falls by {drop:.3f}"
    )
    words += "" if math.isnan(error) else f" ± {1.96 * error:.3f}"
    return Reached(budget.spelling, curve[within][0], math.nan, math.nan, words)


def _accuracy(record: ZeroShot, task: str) -> TaskScore:
    for score in record.scores:
        if score.task == task and score.metric == "acc":
            return score
    raise UserError(f"the task {task} has no metric acc, which a budget of accuracy is about")


def _paired_error(a: TaskScore, b: TaskScore) -> float:
    """Standard error of the difference of two accuracies on the same questions; NaN where they are not known."""
    n = len(a.items)
    if n < 2 or n != len(b.items):
        return math.nan
    differences = [x - y for x, y in zip(a.items, b.items, strict=True)]
    mean = math.fsum(differences) / n
    return math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
