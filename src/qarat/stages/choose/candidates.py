"""Candidates for protection: the cheapest set of them for what may be left low, which is a knapsack, solved exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from qarat.maths.allocation import Problem, allocate
from qarat.values.plans import Plan
from qarat.values.schemes import Scheme
from qarat.values.units import Unit


class Candidates:
    """Units that may be protected: what each costs protected, and what it is predicted to lose left low.

    Attributes:
        size: Of the plan that protects nothing, in what protection costs.
        allowed: Number of them.
        are_limited: Whether other units, which have prices too, stay low whatever they cost.
    """

    def __init__(
        self, naive: Plan, allowed: Sequence[Unit], every: Sequence[Unit], damages: Mapping[str, float], protect: Scheme
    ) -> None:
        """Count what protection costs: the bits that it adds, to a weight or to what a token leaves in a cache.

        Where it adds none at some unit (FP8 beside INT8, or finer scales for inputs alone), it costs the parameters
        that are not low instead: of something free there is never too much.

        Args:
            naive: The plan that protects nothing.
            allowed: Those that may be protected.
            every: All that have a price.
            damages: Price of each of their sites in the low scheme.
            protect: What protected sites get.
        """
        raised = naive.with_schemes(dict.fromkeys((s for u in allowed for s in u.sites), protect), "")
        before, after = (
            {a.site.name: p.site_bits(a) + p.token_bits(a) for a in p.assignments} for p in (naive, raised)
        )
        added = {site: after[site] - bits for site, bits in before.items()}
        bits = [sum(added[s] for s in unit.sites) for unit in allowed]
        in_bits = all(b > 0 for b in bits)
        self.size = naive.weight_bits() if in_bits else sum(s.parameters for s in naive.sites)
        self.allowed, self.are_limited = len(allowed), len(allowed) < len(every)
        self._costs = dict(zip(allowed, bits if in_bits else [u.parameters for u in allowed], strict=True))
        self._prices = {unit: price_of(unit, damages) for unit in every}

    def cost(self, units: Sequence[Unit]) -> int:
        """Of protecting these."""
        return sum(self._costs[unit] for unit in units)

    def cheapest(self, left: float) -> tuple[Unit, ...]:
        """The cheapest set to protect so that what stays low is priced at no more than ``left``.

        Of sets that cost the same, the one that leaves least; all that have a price, where even that leaves more.
        """
        if not self._costs:
            return ()
        prices = np.array([self._prices[unit] for unit in self._costs])
        costs = np.array([float(cost) for cost in self._costs.values()])
        fixed = math.fsum(price for unit, price in self._prices.items() if unit not in self._costs)
        # Costs are whole numbers, so half of one, shared out by price, decides nothing but between equal costs.
        tie = 0.5 * prices / (prices.sum() or 1.0)
        # The roles of the allocation are swapped: the cost is made least, and what is left low is limited.
        problem = Problem(np.stack([tie, costs], axis=1), np.stack([prices, np.zeros_like(prices)], axis=1))
        choice = allocate(problem, max(left - fixed, 0.0)).choice
        return tuple(unit for unit, protected in zip(self._costs, choice, strict=True) if protected)


def price_of(unit: Unit, damages: Mapping[str, float]) -> float:
    """Predicted for a unit in the low scheme; a price below zero is noise, and no gain to be spent elsewhere.

    Args:
        unit: Of one site or several.
        damages: Price by site.
    """
    return max(math.fsum(damages[s] for s in unit.sites), 0.0)
