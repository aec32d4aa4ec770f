"""What each budget reaches, from the trials that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qarat.ground.errors import UserError
from qarat.stages.choose.space import ROUNDING, Space
from qarat.values.budgets import AccuracyBudget, CostBudget, LossBudget
from qarat.values.records.origin import Z, spell_bounds
from qarat.values.records.scores import Evaluation
from qarat.values.records.search import Reached, SearchTrial
from qarat.values.requests.search import BITS, POINTS, SearchRequest


def point_of(budget: CostBudget, space: Space) -> float:
    """The place on a space's axis that a budget of cost asks for; larger places are cheaper.

    Args:
        budget: ``ratio=…`` where the axis is Q_r, ``bytes=…`` where it is megabytes, else ``bits=…`` or ``bytes=…``.
        space: Whose axis is meant.

    Raises:
        UserError: If the axis is the other one.
    """
    axes = {"ratio": ["ratio"], "bits": ["bits"], "bytes": ["bits", "megabytes"]}
    if space.axis not in axes[budget.kind]:
        remedy = "search for it alone" if len(space.options) == 2 else "ask for bits=… or bytes=…"
        if space.axis == "megabytes":
            remedy = "ask for bytes=…, of weights and caches together"
        raise UserError(f"`budgets` {budget.spelling}: plans of this search are ordered by {space.axis}; {remedy}")
    if budget.kind == "ratio":
        return budget.amount
    if space.axis == "megabytes":
        return -budget.limit(0) / 8e6
    weights = sum(a.site.parameters for a in space.base.assignments)
    return -budget.limit(weights) / weights


def points_of(request: SearchRequest, space: Space, *, draws: bool) -> tuple[float, ...]:
    """Places on the axis at which the best plan is wanted: those a request names, and those of its budgets of cost.

    Where it names none, the usual ones are taken if a budget needs a curve: one of accuracy to go along it, to its
    cheapest end; one of loss where the strategy draws, to draw at.

    Args:
        request: Checked.
        space: Of its choices.
        draws: Whether the strategy needs points to draw at.

    Raises:
        UserError: A budget of cost of the other axis.
    """
    budgets = request.parsed_budgets()
    by_ratio = space.axis == "ratio"
    points = [p if by_ratio else -p for p in request.points]
    accuracy = any(isinstance(b, AccuracyBudget) for b in budgets)
    drawn = draws and any(isinstance(b, LossBudget) for b in budgets)
    if not points and (accuracy or drawn):
        points = list(POINTS[request.granularity]) if by_ratio else [-x for x in BITS]
        if space.axis == "megabytes":
            points = np.linspace(space.position(space.highest), space.cheapest, len(BITS) + 1)[1:].tolist()
        points += [space.cheapest] if accuracy else []
    return tuple(dict.fromkeys(points + [point_of(b, space) for b in budgets if isinstance(b, CostBudget)]))


def reach(
    budget: LossBudget | CostBudget, trials: Sequence[SearchTrial], space: Space, float_loss: Evaluation
) -> Reached:
    """The best trial within a budget, how sure that is, and the reason in words.

    Args:
        budget: Of loss (the cheapest plan within it is chosen) or of cost (the plan that loses least).
        trials: Measured ones and failed ones.
        space: Of their choices.
        float_loss: For the number of tokens behind the errors.
    """
    measured = [(i, t) for i, t in enumerate(trials) if not t.failure]
    if isinstance(budget, LossBudget):
        return _within_loss(budget, measured, space, float_loss)
    least = point_of(budget, space)
    meeting = [(i, t) for i, t in measured if space.position(t.choice) >= least - ROUNDING]
    if not meeting:
        best = max((space.position(t.choice) for _, t in measured), default=math.nan)
        return _nothing(budget, f"no plan that was tried meets it; the nearest has {abs(best):.3f}")
    index, trial = min(meeting, key=lambda pair: pair[1].damage.nats)
    verdict = f"{trial.label}: {_loss(trial)} at Q_r {trial.ratio:.3f}, {trial.bits:.2f} bits per weight"
    verdict += f", {trial.megabytes:.3f} MB" if space.axis == "megabytes" else ""
    return Reached(budget.spelling, index, math.nan, math.nan, verdict)


def _within_loss(
    budget: LossBudget, measured: Sequence[tuple[int, SearchTrial]], space: Space, float_loss: Evaluation
) -> Reached:
    within = [(i, t) for i, t in measured if t.damage.nats <= budget.nats]
    if not within:
        if not measured:
            return _nothing(budget, "no plan could be measured")
        _, best = min(measured, key=lambda pair: pair[1].damage.nats)
        verdict = f"no plan that was tried keeps it; the best, {best.label}, {_loss(best)}"
        return _nothing(budget, verdict + _doubt(budget, best, float_loss))
    index, trial = max(within, key=lambda pair: (space.position(pair[1].choice), -pair[1].damage.nats))
    low, high = _interval(budget.nats, measured, space, space.position(trial.choice))
    verdict = f"{trial.label}: {_loss(trial)}, within {budget.nats:.4f}" + _doubt(budget, trial, float_loss)
    return Reached(budget.spelling, index, low, high, verdict)


def _interval(
    nats: float, measured: Sequence[tuple[int, SearchTrial]], space: Space, chosen: float
) -> tuple[float, float]:
    """Both ends of what is reachable; unknown where a single source gives no error."""
    if any(math.isnan(t.damage.standard_error) for _, t in measured):
        return math.nan, math.nan
    # Between two plans there may be none, and then the line crosses beyond the one that is within the budget.
    dear, cheap = min(_edge(nats, measured, space, Z), chosen), _edge(nats, measured, space, -Z)
    return (dear, cheap) if space.axis == "ratio" else (space.place(cheap), space.place(dear))


def _edge(nats: float, measured: Sequence[tuple[int, SearchTrial]], space: Space, errors: float) -> float:
    """Where the curve, moved by so many standard errors, crosses a loss; between two trials by a straight line.

    Every plan that costs less is better known to lose more, so the curve is the least loss at that cost or cheaper.
    Where it crosses beyond all trials, the last of them bounds one end of the interval; the other is NaN, unless no
    plan lies there.
    """
    points = sorted((space.position(t.choice), t.damage.nats + errors * t.damage.standard_error) for _, t in measured)
    curve: list[tuple[float, float]] = []
    for position, loss in reversed(points):
        if not curve or loss < curve[-1][1]:
            curve.append((position, loss))
    if space.loses_nothing:
        curve.append((space.position(space.highest), 0.0))
    previous = curve[0]
    if previous[1] <= nats:
        return previous[0] if errors > 0 or previous[0] >= space.cheapest - ROUNDING else math.nan
    for position, loss in curve[1:]:
        if loss <= nats < previous[1]:
            share = (previous[1] - nats) / (previous[1] - loss)
            return previous[0] + share * (position - previous[0])
        previous = (position, loss)
    return previous[0] if previous[0] <= space.position(space.highest) + ROUNDING else math.nan


def _doubt(budget: LossBudget, trial: SearchTrial, float_loss: Evaluation) -> str:
    """What to do where the budget is smaller than what the measurement can tell."""
    noise = Z * trial.damage.standard_error
    if math.isnan(noise):
        return "; how sure that is cannot be said of a single source"
    if noise <= budget.nats:
        return ""
    if not budget.nats:
        return f"; that is known to within {noise:.4f} nats (95 %), and no measurement tells a loss of exactly nothing"
    tokens = sum(float_loss.predicted)
    needed = tokens * (noise / budget.nats) ** 2
    return (
        f"; but that is known to within {noise:.4f} nats only (95 %), more than the budget: some {needed:,.0f} tokens "
        f"would do, not {tokens:,}"
    )


def _nothing(budget: LossBudget | CostBudget, verdict: str) -> Reached:
    return Reached(budget.spelling, -1, math.nan, math.nan, verdict)


def _loss(trial: SearchTrial) -> str:
    return f"loses {trial.damage.nats:.4f} nats{spell_bounds(trial.damage.nats, trial.damage.standard_error)}"
