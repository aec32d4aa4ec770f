"""Tree-structured Parzen estimator (Bergstra et al. 2011) by Optuna: learns at each point from the plans tried there.

A ratio is a constraint that samplers of independent choices miss nearly always. So what is sampled is a rank a unit:
units are lowered in the order of their ranks until the ratio is reached, and every sample is a plan at that ratio.
"""

from __future__ import annotations

import math

import numpy as np

from qarat.ground.errors import UserError
from qarat.stages.choose.space import Space
from qarat.stages.choose.strategies.base import Asking, Goal, Proposal, lower_in_order

try:
    import optuna
except ImportError:
    raise UserError("`strategy` tpe needs Optuna: pip install 'qarat[search]'") from None
optuna.logging.set_verbosity(optuna.logging.WARNING)

METRIC, DRAWS = "", True


def propose(space: Space, goal: Goal) -> Asking:
    """So many plans at every point, sampled by Optuna."""
    for point in goal.points:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=goal.seed))
        for trial in range(goal.trials):
            drawn = study.ask()
            ranks = [drawn.suggest_float(f"rank {u.label}", 0, 1) for u in space.units]
            options = [
                drawn.suggest_int(f"option {u.label}", 0, len(space.options) - 2) if len(space.options) > 2 else 0
                for u in space.units
            ]
            choice = lower_in_order(space, point, np.argsort(ranks, kind="stable").tolist(), options)
            (answer,) = yield [Proposal(choice, f"tpe {trial + 1} at {abs(point):g}")]
            # A plan that could not be measured is worse than any other.
            study.tell(drawn, math.inf if answer is None else answer.nats)
