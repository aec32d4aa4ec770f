"""Protection: which sites to keep above the low scheme; candidates ranked by prediction, confirmed by measurement.

Spike-aware planning is a search at two schemes. The ranking (damage per parameter, or a spike rule) only says in which
order to try; what is chosen is measured on the selection tokens: protect the first k, k = 0, 1, 2, …, stop when the
budget is met or when the next ones change nothing. A site whose protection turns out to buy nothing is released again.
What is given up: plans outside that order are not tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from qarat.ground.runtime import Progress, no_progress
from qarat.stages.choose.trials import PlanMeter
from qarat.values.budgets import LossBudget
from qarat.values.plans import Plan
from qarat.values.records.prices import Protection, Trial
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.schemes import Scheme
from qarat.values.sites import short_name
from qarat.values.units import Unit

PATIENCE = 3  # additions in a row that change nothing before the trying ends
NOTHING = 0.02  # of the naive loss; a smaller gain counts as none
REMAINDER = 0.1  # of what a plan still loses beyond the budget; a gain has to be below this, too, to count as none
MOST = 24  # candidates tried at the most
ALONE = 4  # of the dearest sites: their own damage is measured beside its prediction,
MOST_ALONE = 8  # and that of protected sites too, but of no more than so many in all


def rank_by_damage(units: Sequence[Unit], damages: Mapping[str, float]) -> tuple[Unit, ...]:
    """Units by damage per parameter, the dearest first.

    Args:
        units: To be ranked.
        damages: Nats per token by site, for every site of the units.
    """
    return tuple(sorted(units, key=lambda u: -sum(damages[s] for s in u.sites) / u.parameters))


class Ranking(NamedTuple):
    """Candidates for protection.

    Attributes:
        units: The first to be protected first.
        order: What ranked them, in words.
        exactly: Protect just so many of the first; None stops at the budget.
    """

    units: tuple[Unit, ...]
    order: str
    exactly: int | None = None


def protect_until(
    naive: Plan,
    ranking: Ranking,
    protect: Scheme,
    budget: LossBudget,
    meter: PlanMeter,
    *,
    most: int = MOST,
    progress: Progress = no_progress,
) -> tuple[Plan, Protection]:
    """Find how many of the ranked units to protect, by measurement.

    Args:
        naive: The plan that protects nothing.
        ranking: Candidates, the dearest first.
        protect: What protected sites get.
        budget: The loss over float that is allowed.
        meter: Losses of plans on the selection tokens.
        most: Protect no more than so many, unless the ranking says how many.
        progress: Called after every measurement.

    Returns:
        The plan, and the measurements behind it.
    """
    ranked, order, exactly = ranking
    driver = _Driver(naive, protect, meter, progress, total=_guess_total(ranked, exactly))
    trials = _protect_ever_more(driver, ranked, budget, exactly, most)
    chosen, verdict = _choose(trials, budget, exactly)
    if exactly is None and len(trials) - 1 == most < len(ranked) and trials[-1].damage.nats > budget.nats:
        verdict += f", or more than the {most} that were allowed"
    units = list(ranked[:chosen])
    recoveries = [driver.recovery(unit, units) for unit in units]
    released = [] if exactly is not None else _release(driver, units, recoveries, budget, trials[0].damage.nats)
    if released:
        units = [u for u in units if u not in released]
        recoveries = [driver.recovery(unit, units) for unit in units]
        loss = driver.trial("released", units).damage.nats
        names = ", ".join(u.label for u in released)
        verdict += f"; {names} released again, as protecting them buys nothing: {len(units)} protected lose {loss:.4f}"
    watched = list(dict.fromkeys([*units, *ranked[:ALONE]]))[:MOST_ALONE]
    alone = tuple(driver.alone(site) for unit in watched for site in unit.sites)
    driver.finish()
    because = {site: f"protected: leaving it low adds {t.damage.nats:.4f} nats" for t in recoveries for site in t.sites}
    plan = naive.with_schemes(dict.fromkeys(because, protect), because.__getitem__)
    plan = msgspec.structs.replace(plan, note=verdict)
    tried = tuple(trials), alone, tuple(recoveries)
    return plan, Protection(meter.blank.provenance, order, budget.spelling, budget.nats, *tried, verdict)


def _protect_ever_more(
    driver: _Driver, ranked: Sequence[Unit], budget: LossBudget, exactly: int | None, most: int
) -> list[Trial]:
    """Protect the first k units, k = 0, 1, 2 and so on, until the budget is met or the next ones change nothing."""
    trials: list[Trial] = []
    idle = 0
    last = min(len(ranked), most) if exactly is None else exactly
    for k in range(last + 1):
        trials.append(driver.trial(f"k={k}", ranked[:k]))
        loss = trials[-1].damage.nats
        gain = trials[-2].damage.nats - loss if k else float("inf")
        # Little beside the naive loss may still be much of the way that is left to the budget.
        little = min(NOTHING * trials[0].damage.nats, REMAINDER * (loss + gain - budget.nats))
        idle = idle + 1 if gain < little else 0
        if exactly is None and (loss <= budget.nats or idle == PATIENCE):
            break
    return trials


def _release(
    driver: _Driver, units: Sequence[Unit], recoveries: Sequence[Trial], budget: LossBudget, naive_loss: float
) -> list[Unit]:
    """Units whose protection buys nothing, the idlest first, as far as the budget holds without all of them."""
    pairs = sorted(zip(units, recoveries, strict=True), key=lambda pair: pair[1].damage.nats)
    allowed = max(budget.nats, driver.trial("all", units).damage.nats)
    released: list[Unit] = []
    for unit, recovery in pairs:
        rest = [u for u in units if u is not unit and u not in released]
        if recovery.damage.nats >= NOTHING * naive_loss or driver.trial("spared", rest).damage.nats > allowed:
            break
        released.append(unit)
    return released


def _choose(trials: Sequence[Trial], budget: LossBudget, exactly: int | None) -> tuple[int, str]:
    """How many to protect, and the reason in words."""
    last = len(trials) - 1
    loss = trials[last].damage.nats
    if exactly is not None:
        return last, f"{last} protected as asked for; loss {loss:.4f} nats over float"
    if loss <= budget.nats:
        nothing = "nothing needs protection" if last == 0 else f"{last} protected"
        return last, f"{nothing}: loss {loss:.4f} nats over float, within {budget.spelling} ({budget.nats:.4f})"
    # Beyond the budget: take the fewest that are as good as the best, up to what counts as nothing.
    best = min(t.damage.nats for t in trials)
    near = best + NOTHING * trials[0].damage.nats
    chosen = next(k for k, t in enumerate(trials) if t.damage.nats <= near)
    return chosen, (
        f"{budget.spelling} ({budget.nats:.4f} nats) is not met: the best of {len(trials)} measured plans loses "
        f"{best:.4f}; {chosen} protected reach {trials[chosen].damage.nats:.4f}. A finer low scheme may do"
    )


def _guess_total(ranked: Sequence[Unit], exactly: int | None) -> int:
    """Measurements to expect, for the progress bar; it usually ends within a few."""
    return 1 + ALONE + 2 * (exactly if exactly is not None else min(4, len(ranked))) + 1


class _Driver:
    """Measures plans that protect, and compares them."""

    def __init__(self, naive: Plan, protect: Scheme, meter: PlanMeter, progress: Progress, total: int) -> None:
        self._naive, self._protect, self._meter = naive, protect, meter
        self._progress, self._total = progress, total
        self._float_plan = naive.in_float()
        progress("protect", 0, total)
        self.float_loss = self._measured(self._float_plan, "float")

    def trial(self, label: str, units: Sequence[Unit]) -> Trial:
        """Protect these units; loss over float."""
        sites = tuple(s for u in units for s in u.sites)
        return Trial(label, sites, paired_difference(self._protecting(sites, label), self.float_loss))

    def recovery(self, unit: Unit, units: Sequence[Unit]) -> Trial:
        """Give up one of the protected units; loss over the plan that protects all of them."""
        everyone = tuple(s for u in units for s in u.sites)
        rest = tuple(s for u in units if u is not unit for s in u.sites)
        label = f"without {unit.label}"
        lost = paired_difference(self._protecting(rest, label), self._protecting(everyone, "all"))
        return Trial(label, unit.sites, lost)

    def finish(self) -> None:
        """Tell the progress callback that no measurement follows."""
        self._progress("protect", self._meter.done, self._meter.done)

    def alone(self, site: str) -> Trial:
        """Only this site low, everything else in float; loss over float."""
        label = f"only {short_name(site)} low"
        plan = self._float_plan.with_schemes({site: self._naive[site]}, label)
        return Trial(label, (site,), paired_difference(self._measured(plan, label), self.float_loss))

    def _protecting(self, sites: tuple[str, ...], label: str) -> Evaluation:
        return self._measured(self._naive.with_schemes(dict.fromkeys(sites, self._protect), label), label)

    def _measured(self, plan: Plan, label: str) -> Evaluation:
        return self._meter.loss(msgspec.structs.replace(plan, note=label), self._tell)

    def _tell(self) -> None:
        self._total = max(self._total, self._meter.done + 1)
        self._progress("protect", self._meter.done, self._total)
