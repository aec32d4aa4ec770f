"""MixQuant: at every unit the cheapest scheme that errs at most QEM times as much as its dearest (arXiv 2309.17341).

The paper's rule: b = min {b : e_b ≤ QEM · e_8}, e_b the mean squared round-off error of a weight in b bits. (Its
formula minimises e_b under that bound, which is 8 always; its text lowers b.) Here e_8 is the error of the menu's
dearest scheme that quantizes the weight; where even that is beyond the bound, QEM below 1, the unit stays high.

One multiplier holds for all units, so plans lie on a line: QEM grows past one unit's ratio after another, and each
ratio is a place where a plan changes. Budgets are found by bisection over these: of cost by counting, of loss by
measuring. What an error does to the loss the rule does not ask. With one quantized scheme all ratios are 1, and units
go low all at once.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from qarat.stages.choose.space import ROUNDING, Space
from qarat.stages.choose.strategies.base import Asking, Goal, Proposal
from qarat.values.records.origin import Difference

METRIC, DRAWS = "weight-error", False


def propose(space: Space, goal: Goal) -> Asking:
    """The same plans whatever the seed."""
    plans = _plans(space, goal)
    wanted = [
        bisect.bisect_left(plans, point - ROUNDING, key=lambda p: space.position(p.choice)) for point in goal.points
    ]
    batch = [plans[min(index, len(plans) - 1)] for index in dict.fromkeys(wanted)]
    if batch:
        yield batch
    for loss in goal.losses:
        within, beyond = 0, len(plans)  # the first plan is the dearest there is
        while beyond - within > 1:
            middle = (within + beyond) // 2
            answers: Sequence[Difference | None] = yield [plans[middle]]
            if answers[0] is not None and answers[0].nats <= loss:
                within = middle
            else:
                beyond = middle
        yield [plans[within]]


def _plans(space: Space, goal: Goal) -> list[Proposal]:
    """Every plan that some QEM stands for, the dearest first, each once."""
    assert goal.predictions is not None
    ratios = error_ratios(space, goal.predictions)
    proposals: dict[tuple[int, ...], Proposal] = {}
    for multiplier in [0.0, *np.unique(ratios[np.isfinite(ratios)]).tolist()]:
        feasible = ratios <= multiplier
        feasible[:, -1] = True  # what is left where nothing keeps the bound
        choice = tuple(feasible.argmax(axis=1).tolist())
        damage = float(goal.predictions[np.arange(len(choice)), list(choice)].sum())
        proposals.setdefault(choice, Proposal(choice, f"QEM {multiplier:.4g}", damage))
    return sorted(proposals.values(), key=lambda proposal: space.position(proposal.choice))


def error_ratios(space: Space, errors: np.ndarray) -> np.ndarray:
    """Error of every option over that of the unit's dearest quantized one.

    Args:
        space: Of units and options, the cheapest first.
        errors: (units, options), not negative.

    Returns:
        (units, options) float64; 0 where nothing errs, infinite where only the dearest errs not at all.
    """
    quantized = [index for index, option in enumerate(space.options) if option.projection.weight is not None]
    base = errors[:, [max(quantized, default=len(space.options) - 1)]]
    ratios = np.divide(errors, base, out=np.full(errors.shape, np.inf), where=base > 0)
    return np.where(errors > 0, ratios, 0.0)
