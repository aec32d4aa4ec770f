"""The space of a search: units that are decided together, and the options each of them has.

Everything a strategy needs to know of a plan is here as plain numbers: what a choice costs, what its ratio is, which
plan it stands for. So strategies are about choices alone, and a new one is one file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import numpy as np

from qarat.ground.errors import UserError
from qarat.values.plans import Assignment, Plan
from qarat.values.records.prices import Menu
from qarat.values.records.search import Choice
from qarat.values.schemes import Scheme
from qarat.values.units import Option, Unit, make_units

Costs = np.ndarray
ROUNDING = 1e-9  # what a place on the axis may be off by, as a sum of shares


class Space:
    """Units, options and the plan they are put into.

    Attributes:
        base: A plan for every site; those of no unit keep its schemes.
        units: What is decided.
        options: What each unit may get, the cheapest first, the highest last.
        basis: What Q_r counts, ``parameters`` or ``macs``.
        axis: What plans are ordered by: ``ratio`` (Q_r), ``bits`` (per weight), ``megabytes`` (of weights and caches).
        context: Tokens whose keys and values count as megabytes.
    """

    def __init__(
        self,
        base: Plan,
        units: Sequence[Unit],
        options: Sequence[Option],
        basis: str,
        length: int,
        axis: str,
        context: int = 0,
    ) -> None:
        """Keep them.

        Args:
            base: For every site.
            units: At least one.
            options: At least two.
            basis: What Q_r counts, ``parameters`` or ``macs``.
            length: Tokens of a window, on which the MACs of attention products depend.
            axis: What plans are ordered by, ``ratio``, ``bits`` or ``megabytes``.
            context: Tokens whose keys and values count as megabytes.
        """
        self.base, self.units, self.options = base, tuple(units), tuple(options)
        self.basis, self.length, self.axis, self.context = basis, length, axis, context
        self._assignments: dict[str, Assignment] = {a.site.name: a for a in base.assignments}

    @cached_property
    def loses_nothing(self) -> bool:
        """Whether the highest plan is the float model: no site low by an override, nothing above low but float."""
        return all(a.is_float for a in self.plan(self.highest, "").assignments)

    @property
    def highest(self) -> Choice:
        """Every unit at its highest option."""
        return (len(self.options) - 1,) * len(self.units)

    @cached_property
    def cheapest(self) -> float:
        """The position beyond which no choice lies."""
        costs, fixed = self.costs(self.axis)
        return (1.0 if self.axis == "ratio" else 0.0) - (float(costs.min(axis=1).sum()) + fixed)

    def plan(self, choice: Choice, reason: str) -> Plan:
        """The plan that a choice stands for."""
        changes: dict[str, Scheme] = {}
        for unit, index in zip(self.units, choice, strict=True):
            changes |= {name: self.options[index].at(self._assignments[name].site) for name in unit.sites}
        return self.base.with_schemes(changes, reason)

    def ratio(self, choice: Choice) -> float:
        """Q_r of a choice, in the space's basis; sites of no unit count as they are in the base plan."""
        return 1.0 - self._cost("ratio", choice)

    def bits(self, choice: Choice) -> float:
        """Bits per weight of a choice, scales included, over all sites."""
        return self._cost("bits", choice)

    def megabytes(self, choice: Choice) -> float:
        """10⁶ bytes of a choice's weights, scales included, and of the keys and values of `context` tokens."""
        return self._cost("megabytes", choice)

    def uniform(self) -> dict[str, Choice]:
        """Every scheme of projections at all units that have any, with every one of caches; by what it is called."""
        kinds = [self._assignments[unit.sites[0]].site.kind for unit in self.units]
        options = range(len(self.options))
        pairs = [(i, j) for i in options for j in (options if "cache" in kinds else [i])]
        choices: dict[str, Choice] = {}
        for i, j in pairs:
            beside = f", {self.options[j].cache}" if "cache" in kinds else ""
            choice = tuple(j if kind == "cache" else i for kind in kinds)
            choices.setdefault(f"{self.options[i].projection}{beside} everywhere", choice)
        return choices

    def position(self, choice: Choice) -> float:
        """Where a choice stands on the axis; larger is cheaper."""
        return self.ratio(choice) if self.axis == "ratio" else -self._cost(self.axis, choice)

    def place(self, position: float) -> float:
        """What a position means: Q_r, bits per weight, or megabytes."""
        return position if self.axis == "ratio" else -position

    def costs(self, kind: str) -> tuple[Costs, float]:
        """What every option costs at every unit, (units, options), and what the sites of no unit cost.

        Args:
            kind: ``ratio`` (the share of the whole, in the basis, that is kept high), ``bits`` (of storage, over the
                number of all weights) or ``megabytes`` (of weights and caches).
        """
        return {"ratio": self._high_shares, "bits": self._bit_costs, "megabytes": self._megabyte_costs}[kind]

    def predictions(self, menu: Menu) -> np.ndarray:
        """Summed damage of every option at every unit, (units, options) float64, in the menu's unit.

        Raises:
            UserError: Listing the sites and schemes that the menu does not price.
        """
        return self._table({(e.site, e.scheme): e.damage for e in menu.entries}, math.fsum)

    def prediction_errors(self, menu: Menu) -> np.ndarray:
        """Standard errors of `predictions`, same shape; those of a unit's sites are taken as independent.

        Of a menu from a single window, or from none, nothing is known of them: they are 0.

        Raises:
            UserError: As `predictions`.
        """
        errors = {(e.site, e.scheme): 0.0 if math.isnan(e.standard_error) else e.standard_error for e in menu.entries}
        return self._table(errors, lambda values: math.hypot(*values))

    def _table(self, known: Mapping[tuple[str, str], float], combine: Callable[[list[float]], float]) -> np.ndarray:
        """What is known of every site and scheme, for every unit and option; float counts as 0."""
        missing: list[str] = []

        def look_up(name: str, option: Option) -> float:
            scheme = option.at(self._assignments[name].site)
            if scheme.is_float:
                return 0.0
            if (name, str(scheme)) not in known:
                missing.append(f"{name}: {scheme}")
            return known.get((name, str(scheme)), 0.0)

        table = [[combine([look_up(n, o) for n in unit.sites]) for o in self.options] for unit in self.units]
        if missing:
            raise UserError("the menu has no price for:\n  " + "\n  ".join(missing[:12]))
        return np.array(table)

    @cached_property
    def depths(self) -> np.ndarray:
        """How deep each unit lies, (units,) float64: 0 in the first block, 1 in the last."""
        blocks = [self._assignments[unit.sites[0]].site.block for unit in self.units]
        last = max(site.block for site in self.base.sites)
        return np.array(blocks) / max(1, last)

    @cached_property
    def _high_shares(self) -> tuple[Costs, float]:
        macs = self.basis == "macs"
        sizes = {n: a.site.macs(self.length) if macs else a.site.parameters for n, a in self._assignments.items()}
        total = sum(sizes.values())
        return self._tabulate(lambda a: 0.0 if self.base.is_low(a) else sizes[a.site.name] / total)

    @cached_property
    def _bit_costs(self) -> tuple[Costs, float]:
        table, fixed = self._tabulate(self.base.site_bits)
        weights = sum(site.parameters for site in self.base.sites)
        return table / weights, fixed / weights

    @cached_property
    def _megabyte_costs(self) -> tuple[Costs, float]:
        table, fixed = self._tabulate(lambda a: self.base.site_bits(a) + self.context * self.base.token_bits(a))
        return table / 8e6, fixed / 8e6

    def _tabulate(self, cost: Callable[[Assignment], float]) -> tuple[Costs, float]:
        """`costs`, summed up site by site."""

        def under(name: str, option: Option) -> Assignment:
            site = self._assignments[name].site
            return Assignment(site, option.at(site), "")

        table = [[sum(cost(under(n, o)) for n in unit.sites) for o in self.options] for unit in self.units]
        decided = {name for unit in self.units for name in unit.sites}
        return np.array(table), sum(cost(a) for name, a in self._assignments.items() if name not in decided)

    def _cost(self, kind: str, choice: Choice) -> float:
        table, fixed = self.costs(kind)
        return float(table[np.arange(len(choice)), list(choice)].sum()) + fixed


def make_space(
    base: Plan,
    options: Sequence[Option],
    *,
    layers: bool = False,
    tied: bool = False,
    pinned: Collection[str] = (),
    basis: str = "parameters",
    length: int = 1,
    axis: str = "ratio",
    context: int = 0,
) -> Space:
    """The space of a base plan, whose overridden sites are left as they are.

    Args:
        base: Everything at the low scheme, with overrides, attention products in float.
        options: The cheapest first; of two, the low scheme. Caches are decided where any of them quantizes these,
            projections where they differ in them.
        layers: Whether whole blocks are decided, instead of sites.
        tied: Whether sites that an engine fuses share their option.
        pinned: Names of sites that a rule decides, also where it says the low scheme.
        basis: What Q_r counts: ``parameters``, with attention products alike in all plans; or ``macs``, with the
            products among the units.
        length: Tokens of a window.
        axis: What plans are ordered by, ``ratio`` or ``bits``; more than two options can be ordered by bits only, those
            with caches by ``megabytes`` only.
        context: Tokens whose keys and values count as megabytes.

    Raises:
        UserError: If nothing is left to decide.
    """
    fixed = {*pinned, *(a.site.name for a in base.exceptions())}
    open_sites = [s for s in base.sites if s.name not in fixed]
    caches = not all(option.cache.is_float for option in options)
    if len({option.projection for option in options}) == 1:
        open_sites = [s for s in open_sites if s.kind != "projection"]
    units = make_units(open_sites, tied=tied, layers=layers, products=basis == "macs", caches=caches)
    if not units:
        raise UserError("nothing is left to search: `rules` decides every site")
    return Space(base, units, options, basis, length, axis, context)
