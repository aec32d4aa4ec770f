"""What a strategy is: a generator of proposals that is told what each of them loses."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from qarat.stages.choose.space import ROUNDING, Space
from qarat.values.records.origin import Difference
from qarat.values.records.search import Choice


class Proposal(NamedTuple):
    """A choice to be measured.

    Attributes:
        choice: Option of each unit.
        label: Why it is tried.
        predicted: What it is thought to lose, in the unit of the predictions; NaN where nothing was predicted.
    """

    choice: Choice
    label: str
    predicted: float = math.nan


class Goal(NamedTuple):
    """What a search is to find out.

    Attributes:
        points: Places on the space's axis at which the best plan is wanted, cheap enough or cheaper.
        losses: Budgets in nats per token, for each of which the cheapest plan is wanted.
        predictions: Damage of every option at every unit, (units, options); None for strategies that do without.
        errors: Standard errors of the predictions, same shape; None where they are not known.
        trials: Plans that a strategy that draws tries at each point.
        seed: Of what it draws.
    """

    points: tuple[float, ...]
    losses: tuple[float, ...]
    predictions: np.ndarray | None = None
    errors: np.ndarray | None = None
    trials: int = 1
    seed: int = 0


Asking = Generator[Sequence[Proposal], Sequence[Difference | None], None]


class Strategy(Protocol):
    """What a file of this folder offers: one way to search.

    Attributes:
        METRIC: What `Goal.predictions` come from where a search names no metric; empty where it needs none.
        DRAWS: Whether it needs `Goal.points`, also where there are budgets of loss.
    """

    METRIC: str
    DRAWS: bool

    def propose(self, space: Space, goal: Goal) -> Asking:
        """Yield batches to be measured; each is answered by what its plans lose over float, None where that failed."""
        ...


def lower_in_order(space: Space, point: float, order: Sequence[int], options: Sequence[int]) -> Choice:
    """Lower units, one after the other, until the plan is as cheap as asked, and no unit more than that takes.

    Args:
        space: Whose units begin at the highest option.
        point: Place on the axis that has to be reached.
        order: Units, the first to be lowered first.
        options: What each unit is lowered to; where that is not cheap enough, units go to the cheapest next.
    """
    choice = list(space.highest)
    for unit, option in [*((u, options[u]) for u in order), *((u, 0) for u in order)]:
        if space.position(tuple(choice)) >= point - ROUNDING:
            break
        choice[unit] = option
    # The last unit may have been a large one: those before it that are not needed now go up again.
    for unit in order:
        lowered, choice[unit] = choice[unit], len(space.options) - 1
        if space.position(tuple(choice)) < point - ROUNDING:
            choice[unit] = lowered
    return tuple(choice)
