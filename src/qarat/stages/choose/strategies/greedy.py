"""Measured greedy search: again and again the step down that loses least for what it saves, every step tried before.

With n units it measures n plans for the first step, n - 1 for the second: n(n + 1)/2 in all. It predicts nothing, and
sees how units act together; what it cannot see is a pair of steps of which the first alone looks bad.
"""

from __future__ import annotations

from qarat.stages.choose.space import ROUNDING, Space
from qarat.stages.choose.strategies.base import Asking, Goal, Proposal
from qarat.values.records.origin import Difference
from qarat.values.records.search import Choice

METRIC, DRAWS = "", False


def propose(space: Space, goal: Goal) -> Asking:
    """The same steps whatever the seed."""
    choice, loss, step = space.highest, 0.0, 0
    farthest = max(goal.points, default=-float("inf")) - ROUNDING
    largest = max(goal.losses, default=-float("inf"))
    while any(choice) and (space.position(choice) < farthest or loss <= largest):
        step += 1
        steps = [_one_lower(choice, unit) for unit, option in enumerate(choice) if option > 0]
        answers = yield [Proposal(next_choice, f"greedy step {step}") for next_choice in steps]
        rates = [
            ((answer.nats - loss) / _saved(space, choice, taken), answer, taken)
            for taken, answer in zip(steps, answers, strict=True)
            if isinstance(answer, Difference)
        ]
        if not rates:
            return
        _, best, choice = min(rates, key=lambda rate: rate[0])
        loss = best.nats


def _one_lower(choice: Choice, unit: int) -> Choice:
    return (*choice[:unit], choice[unit] - 1, *choice[unit + 1 :])


def _saved(space: Space, before: Choice, after: Choice) -> float:
    # A step that saves nothing on the axis (an option as dear as the next) must not divide by zero.
    return max(space.position(after) - space.position(before), 1e-12)
