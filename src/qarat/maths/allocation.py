"""Allocation: one option for every unit, so that the summed damage is least within a limit on a summed cost.

This is the multiple-choice knapsack. A unit is whatever must be decided as one: a site, a group of sites tied by an
engine, a block; making units is the caller's matter, and so is what a cost means (bits, parameters kept high).

Greedy goes along each unit's lower convex hull, as the linear relaxation does, and so comes with that relaxation's
bound. The exact way asks which options can still matter between the two: an option's reduced damage (d + λ·c over the
unit's least, λ the price of cost at the relaxation's optimum) is what it adds to the bound at the least, and whatever
adds more than the gap is out. The units left open are gone through one by one, keeping the partial choices that no
other beats in both cost and damage (Nemhauser & Ullmann 1969; the core of a few units is Pisinger's, 1995).

Why not an integer-programming solver: HiGHS stops at an absolute gap of 1e-6, takes a limit overshot by 1e-6 as kept,
writes to the standard output from C (scipy 1.17), and was some ten times slower; the tests ask it as a second opinion.
Given up: problems made to be hard (damages equal to costs up to a constant) hold more partial choices than `STATES`;
then the best of those kept is returned, with a bound that says how far from the optimum it may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qarat.ground.errors import UserError

STATES = 1 << 16
"""Most partial choices kept: ten times what 400 units of six schemes were seen to need, and 210 MB for so many."""
ROUNDING = 1e-12
"""What sums of a few hundred float64 may be off by, as a share of their terms; no choice is ruled out by less."""
OFFENDERS = 5  # that a message names


@dataclass(frozen=True, eq=False)
class Problem:
    """Damages and costs to choose from.

    Attributes:
        damages: (units, options) float64, nats per token, of either sign; infinite where a unit lacks the option.
        costs: (units, options) float64, additive, not negative; whatever is given where a unit lacks the option
            becomes infinite. Whole numbers are added exactly.

    Raises:
        UserError: Shapes that do not fit, NaN, damages of −∞, costs negative or infinite, units without options.
    """

    damages: NDArray[np.float64]
    costs: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Copy and check."""
        d, c = np.array(self.damages, dtype=np.float64), np.array(self.costs, dtype=np.float64)
        if d.ndim != 2 or d.shape != c.shape or not d.size:
            raise UserError(f"damages {d.shape} and costs {c.shape} must have the same shape (units, options)")
        has = d != np.inf
        _refuse(np.isnan(d) | (d == -np.inf), d, "damage", "give nats per token, or inf for an option there is not")
        _refuse(has & ~((c >= 0) & (c < np.inf)), c, "cost", "give a finite cost of at least 0")
        if empty := np.flatnonzero(~has.any(axis=1)).tolist():
            raise UserError(f"no option at all for unit {_listed(empty)}; give one a finite damage")
        c[~has] = np.inf
        for name, array in (("damages", d), ("costs", c)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def damage(self, choice: Sequence[int] | NDArray[np.intp]) -> float:
        """Summed damage of a choice, rounded once."""
        return math.fsum(self.damages[np.arange(len(self.damages)), choice])

    def cost(self, choice: Sequence[int] | NDArray[np.intp]) -> float:
        """Summed cost of a choice, rounded once."""
        return math.fsum(self.costs[np.arange(len(self.costs)), choice])

    def least_cost(self) -> float:
        """The least that any choice costs."""
        return math.fsum(self.costs.min(axis=1))


@dataclass(frozen=True)
class Allocation:
    """One option for every unit.

    Attributes:
        choice: Index of the option, one for each unit.
        damage: Summed, nats per token.
        cost: Summed.
        bound: No choice within the limit has less damage than this.
    """

    choice: tuple[int, ...]
    damage: float
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """Nats per token by which the damage may be above the optimum; 0 where it is the optimum."""
        return self.damage - self.bound


def allocate(problem: Problem, limit: float) -> Allocation:
    """The choice of least damage within a limit.

    Returns:
        Optimal, with a gap of 0; with an honest gap above 0 where more than `STATES` partial choices would be needed.
        Of equally good choices always the same one.

    Raises:
        UserError: If no choice is within the limit; says what the least costs.
    """
    start, price = _descend(problem, limit)
    return start if start.gap == 0 else _search(problem, limit, start, price)


def allocate_greedy(problem: Problem, limit: float) -> Allocation:
    """A good choice within a limit, fast, with the bound of the linear relaxation; otherwise as `allocate`.

    Every unit begins with its least damage; then, along the units' lower convex hulls, the step that adds the least
    damage for the cost it saves is taken, until the limit is kept; what the last step saved too much is spent again.
    """
    return _descend(problem, limit)[0]


def frontier(problem: Problem, limits: Sequence[float]) -> tuple[Allocation, ...]:
    """The choices of least damage within each of several limits.

    Args:
        problem: Damages and costs.
        limits: Most that each choice may cost, in any order.

    Returns:
        In the order of the limits. A higher limit never has more damage; where it has no less, it keeps the choice of
        the lower one.

    Raises:
        UserError: If no choice is within one of the limits; names all those, and says what the least costs.
    """
    _check_limits(problem, limits)
    best: dict[float, Allocation] = {}
    before: Allocation | None = None
    for limit in sorted(limits):
        here = allocate(problem, limit)
        if before is not None and before.damage <= here.damage:
            here = replace(before, bound=min(before.damage, here.bound))
        best[limit] = before = here
    return tuple(best[limit] for limit in limits)


def _refuse(wrong: NDArray[np.bool_], values: NDArray[np.float64], noun: str, remedy: str) -> None:
    if places := [f"{i}, option {j} ({values[i, j]:g})" for i, j in np.argwhere(wrong).tolist()]:
        raise UserError(f"impossible {noun} of unit {_listed(places, '; unit ')}: {remedy}")


def _listed(places: Sequence[object], separator: str = ", ") -> str:
    more = f" and {len(places) - OFFENDERS} more" if len(places) > OFFENDERS else ""
    return separator.join(map(str, places[:OFFENDERS])) + more


def _check_limits(problem: Problem, limits: Sequence[float]) -> None:
    least = problem.least_cost()
    if beyond := [f"{limit:.15g}" for limit in limits if not least <= limit]:
        raise UserError(f"no choice costs at most {_listed(beyond)}: the least reachable cost is {least:.15g}")


class _Step(NamedTuple):
    """From one option of a unit's hull to the next cheaper one; ordered by price."""

    price: float  # damage added per cost saved
    unit: int
    option: int
    saved: float


def _hull(unit: int, damages: Sequence[float], costs: Sequence[float]) -> tuple[int, list[_Step]]:
    """The option of least damage, and the steps from it along the lower convex hull, their prices ever higher."""
    order = sorted(range(len(damages)), key=lambda j: (damages[j], costs[j]))
    hull, steps = [order[0]], list[_Step]()

    def step(to: int) -> _Step:
        saved = costs[hull[-1]] - costs[to]
        return _Step((damages[to] - damages[hull[-1]]) / saved, unit, to, saved)

    for j in order[1:]:
        if costs[j] >= costs[hull[-1]]:
            continue
        while steps and steps[-1].price >= step(j).price:
            hull.pop()
            steps.pop()
        steps.append(step(j))
        hull.append(j)
    return order[0], steps


def _descend(problem: Problem, limit: float) -> tuple[Allocation, float]:
    """The greedy choice, and the price of cost, nats per unit of cost, at which it stopped."""
    _check_limits(problem, [limit])
    units = zip(problem.damages.tolist(), problem.costs.tolist(), strict=True)
    hulls = [_hull(i, damages, costs) for i, (damages, costs) in enumerate(units)]
    choice = np.array([first for first, _ in hulls])
    cost, price = problem.cost(choice), 0.0
    if cost <= limit:  # nothing has to be given up
        return _allocation(problem, choice, np.inf), price
    for step in sorted(step for _, steps in hulls for step in steps):
        if cost <= limit and problem.cost(choice) <= limit:  # the second is without the rounding of what was taken off
            break
        choice[step.unit] = step.option
        cost -= step.saved
        price = step.price
    reduced = (problem.damages + price * problem.costs).min(axis=1)
    return _allocation(problem, _spend_rest(problem, choice, limit), math.fsum([*reduced, -price * limit])), price


def _spend_rest(problem: Problem, choice: NDArray[np.intp], limit: float) -> NDArray[np.intp]:
    """Take, one after the other, the single changes that gain the most damage within the limit."""
    units = np.arange(len(choice))
    while True:
        rest = limit - problem.cost(choice)
        dearer = problem.costs - problem.costs[units, choice][:, None]
        gains = np.where(dearer <= rest, problem.damages[units, choice][:, None] - problem.damages, 0)
        unit, option = divmod(int(gains.argmax()), gains.shape[1])
        changed = choice.copy()
        changed[unit] = option
        if gains[unit, option] <= 0 or problem.cost(changed) > limit:
            return choice
        choice = changed


def _allocation(problem: Problem, choice: NDArray[np.intp], bound: float) -> Allocation:
    """A choice with what is known of the least damage; its own is the most that can be."""
    damage = problem.damage(choice)
    return Allocation(tuple(choice.tolist()), damage, problem.cost(choice), min(bound, damage))


_Layer = tuple[int, NDArray[np.int32], NDArray[np.int32]]
"""A unit; and of each partial choice behind it, the index of the one before it, and the option taken here."""


def _search(problem: Problem, limit: float, start: Allocation, price: float) -> Allocation:
    """The optimum, between a choice and the bound of the relaxation."""
    reduced = problem.damages + price * problem.costs  # (units, options): the Lagrangian of each option
    least = reduced.min(axis=1)  # summed, less price · limit, the bound
    slack = ROUNDING * (math.fsum(abs(least)) + price * limit)
    room = start.gap + slack
    is_open = reduced - least[:, None] <= room  # an option that adds more to the bound alone is beyond any optimum
    cheapest = np.where(is_open, problem.costs, np.inf).min(axis=1)
    # Units that are all but decided first: they add few partial choices.
    second = np.partition(reduced - least[:, None], 1, axis=1)[:, 1] if reduced.shape[1] > 1 else least
    costs, damages, added = np.array([math.fsum(cheapest)]), np.zeros(1), np.zeros(1)
    layers: list[_Layer] = []
    dropped = np.inf
    for unit in np.argsort(-second, kind="stable").tolist():
        options = np.flatnonzero(is_open[unit])
        parents = np.repeat(np.arange(len(costs)), len(options))
        taken = np.tile(options, len(costs))
        costs = costs[parents] + (problem.costs[unit, taken] - cheapest[unit])
        damages = damages[parents] + problem.damages[unit, taken]
        added = added[parents] + (reduced[unit, taken] - least[unit])
        useful, lost = _undominated(costs, damages, added, room, limit * (1 + ROUNDING))
        dropped = min(dropped, lost)
        costs, damages, added = costs[useful], damages[useful], added[useful]
        layers.append((unit, parents[useful].astype(np.int32), taken[useful].astype(np.int32)))
    ranked = (_trace(layers, state) for state in np.argsort(damages, kind="stable").tolist())
    # Summed anew: sums on the way here were rounded.
    first = np.array(start.choice)
    kept = next((choice for choice in ranked if problem.cost(choice) <= limit), first)
    best = min(kept, first, key=problem.damage)
    return _allocation(problem, best, start.bound + dropped)


def _undominated(
    costs: NDArray[np.float64], damages: NDArray[np.float64], added: NDArray[np.float64], room: float, limit: float
) -> tuple[NDArray[np.intp], float]:
    """Partial choices that can still become the best, and the least that those left out for their number add.

    Args:
        costs: (choices,) so far, with every unit to come at its cheapest.
        damages: (choices,) so far.
        added: (choices,) what each adds to the bound of the relaxation.
        room: Most that may be added.
        limit: On the cost.
    """
    possible = np.flatnonzero((added <= room) & (costs <= limit))
    # By cost; of those, only what has less damage than everything cheaper can be part of the best choice.
    order = possible[np.lexsort((damages[possible], costs[possible]))]
    lowest = np.minimum.accumulate(damages[order])
    kept = order[np.append(True, damages[order][1:] < lowest[:-1])] if len(order) else order
    if len(kept) <= STATES:
        return kept, np.inf
    ranked = kept[np.argsort(added[kept], kind="stable")]
    return ranked[:STATES], float(added[ranked[STATES]])


def _trace(layers: Sequence[_Layer], state: int) -> NDArray[np.intp]:
    """The whole choice that ended in a state."""
    choice = np.empty(len(layers), dtype=np.intp)
    for unit, parents, options in reversed(layers):
        choice[unit] = options[state]
        state = int(parents[state])
    return choice
