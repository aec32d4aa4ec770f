"""Random search, the second founding paper's: so many random plans at every ratio, the best is taken (sec. 3, 4.1).

How the paper enforces the ratio is not described. Here units are lowered in a random order until the ratio is reached,
which draws the low set uniformly, save for the last units that make it fit.
"""

from __future__ import annotations

import numpy as np

from qarat.stages.choose.space import Space
from qarat.stages.choose.strategies.base import Asking, Goal, Proposal, lower_in_order

METRIC, DRAWS = "", True


def propose(space: Space, goal: Goal) -> Asking:
    """So many random plans at every point."""
    # A generator a point: the plans at one ratio do not depend on which others are asked for.
    for point in goal.points:
        random = np.random.default_rng([goal.seed, round(abs(point) * 1e9)])
        batch: list[Proposal] = []
        for trial in range(goal.trials):
            order = random.permutation(len(space.units)).tolist()
            options = random.integers(0, len(space.options) - 1, len(space.units)).tolist()
            choice = lower_in_order(space, point, order, options)
            batch.append(Proposal(choice, f"random {trial + 1} at {abs(point):g}"))
        yield batch
