"""Planning: stats and prices become a plan, confirmed by measurement. Where the stages of a plan are put together.

This is the one recipe behind `qarat plan`, `qarat run` and the Python API; the stages themselves do not know each
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.bench import plan_meter
from qarat.jobs.spreading import Spread
from qarat.model.model import Model
from qarat.model.prefixes import check_prefix, prefix_of, shared_front
from qarat.model.tokens import TokenSet
from qarat.stages.choose.protect import Ranking, protect_until, rank_by_damage
from qarat.stages.choose.trials import TrialLog
from qarat.stages.observe import Collect, observe
from qarat.stages.quantize import check_stats
from qarat.stages.rounding import needs_calibration
from qarat.stages.rounding.inputs import Calibration, inputs_of
from qarat.stages.spikes import find_spikes, sites_of, spiking_front
from qarat.values.budgets import parse_loss_budget
from qarat.values.fingerprints import brief, transforms_of
from qarat.values.parsing import input_scheme, parse_scheme
from qarat.values.plans import Plan, PlanError, assign, match_sites
from qarat.values.records.files import content_hash
from qarat.values.records.prices import Menu, Protection
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ENGINES_THAT_FUSE, ProtectRequest
from qarat.values.sites import Site, short_name
from qarat.values.units import Unit, make_units

NAMED = 12  # sites that a line about a pattern names


def profile(
    model: Model,
    tokens: TokenSet,
    prefix: int | Literal["auto"] = 0,
    *,
    attention: bool = True,
    collect: Collect | None = None,
    progress: Progress = no_progress,
) -> ActivationStats:
    """Measure every stream, without a prefix that is given or found.

    Args:
        model: In float.
        tokens: The calibration set.
        prefix: So many tokens in front of each window are left out; ``auto``: as many as hold spikes and are the
            same in every window, one more pass for each that is found.
        attention: As `qarat.stages.observe.observe`.
        collect: As there.
        progress: Called after every block.

    Raises:
        UserError: As `qarat.stages.observe.observe`.
    """
    more: dict[str, Any] = {"attention": attention, "collect": collect, "progress": progress}
    stats = observe(model, tokens, prefix=0 if prefix == "auto" else prefix, **more)
    while prefix == "auto" and (front := min(spiking_front(stats), shared_front(tokens))) > len(stats.prefix):
        stats = observe(model, tokens, prefix=front, **more)
    return stats


def draft_plan(model: Model, request: ProtectRequest, stats: str = "", prefix: tuple[int, ...] = ()) -> Plan:
    """Everything low, with the request's overrides, before anything is measured.

    Args:
        model: In float.
        request: Checked against the model's sites as a whole.
        stats: Content hash of the stats behind static scales.
        prefix: Ids of the tokens in front that stay in float.

    Raises:
        UserError: A prefix that the model cannot have.
        PlanError: A pattern that matches nothing or nothing that can be protected, a scheme that does not fit, ties
            broken.
    """
    plan = assign(model.fingerprint, model.source_bits, model.sites(), request.low, request.overrides(), stats, prefix)
    prefix_of(model, plan)  # refuses what the model cannot have
    overridden = {a.site for a in plan.exceptions()}
    for pattern in request.sites:
        matched = match_sites(pattern, plan.sites)
        if not any(s.kind == "projection" and s not in overridden for s in matched):
            raise PlanError(f"`sites` {pattern!r} names only attention products, or sites that `rules` decides")
    if request.runtime in ENGINES_THAT_FUSE:
        plan.check_ties()
    return plan


def describe_matches(request: ProtectRequest, sites: Sequence[Site]) -> tuple[str, ...]:
    """A line for every pattern of the request: which sites it names.

    Raises:
        PlanError: A pattern that matches nothing.
    """
    patterns = [(f"`rules` {pattern!r}", pattern) for pattern, _ in request.overrides()]
    patterns += [(f"`sites` {pattern!r}", pattern) for pattern in request.sites]
    lines: list[str] = []
    for spelling, pattern in patterns:
        names = [short_name(s.name) for s in match_sites(pattern, sites)]
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        lines.append(f"{spelling} matches {len(names)} site{'s' if len(names) > 1 else ''}: {shown}")
    return tuple(lines)


def naive_plan(model: Model, request: ProtectRequest, stats: ActivationStats) -> Plan:
    """Everything low, with the request's overrides: what a plan is compared with.

    Args:
        model: In float.
        request: Of which the low scheme, the overrides and the runtime count here.
        stats: Behind static scales; what they leave out is the plan's prefix.

    Raises:
        PlanError: A pattern that matches nothing, a scheme that does not fit, ties broken.
        UserError: Stats of another model or with another prefix, or streams missing.
    """
    _check_origin(model, stats)
    if request.prefix not in ("auto", len(stats.prefix)):
        raise UserError(
            f"`prefix` {request.prefix}: these stats leave out {len(stats.prefix)} tokens in front; profile again with "
            f"`prefix` {request.prefix}, or plan with `prefix` {len(stats.prefix)}"
        )
    plan = draft_plan(model, request, content_hash(stats), stats.prefix)
    if needs_calibration((*plan.schemes.values(), parse_scheme(request.protection))):
        plan = msgspec.structs.replace(plan, calibration=stats.provenance.tokens)
    check_stats(plan, stats)
    return plan


def find_plan(
    model: Model,
    selection: TokenSet,
    request: ProtectRequest,
    stats: ActivationStats,
    menu: Menu,
    *,
    calibration: TokenSet | Calibration | None = None,
    most: int | None = None,
    spread: Spread | None = None,
    progress: Progress = no_progress,
) -> tuple[Plan, Protection]:
    """Choose the sites to protect by their prices, and confirm the choice by measuring a few plans.

    Args:
        model: In float.
        selection: The selection set, on which choices are measured.
        request: What the plan should be.
        stats: Of the calibration set.
        menu: Prices of the low scheme.
        calibration: Tokens behind roundings that look at what a projection reads, or what keeps the weights so rounded.
        most: Protect none but so many of the dearest (sites or ties), unless the request says which; None: any.
        spread: By whose workers each plan is measured; None: in this process.
        progress: Called after every measurement.

    Returns:
        The plan, and the measurements behind it.

    Raises:
        PlanError: As `naive_plan`; or a menu without prices of the low scheme.
        UserError: Selection windows that do not begin with the prefix.
    """
    done = transforms_of(model.fingerprint)
    if len(done) != len(request.transforms):
        raise UserError(
            f"the request has {len(request.transforms)} transforms, the model {len(done)}: plan the model that "
            "`qarat.jobs.transforming.prepare` makes"
        )
    naive = naive_plan(model, request, stats)
    check_prefix(selection, naive.prefix)
    protect = parse_scheme(request.protection)
    ranking = rank_units(request, naive, stats, menu)
    inputs, fixed = inputs_of(model, calibration, len(naive.prefix)), prefix_of(model, naive)
    measure = None if spread is None else spread.measuring(model, selection, stats, fixed, inputs)
    more: dict[str, Any] = {"prefix": fixed, "calibration": inputs, "measure": measure}
    meter = plan_meter(model, selection, stats, TrialLog(None, {}), **more)
    budget = parse_loss_budget(request.budget)
    plan, record = protect_until(naive, ranking, protect, budget, meter, most=most, progress=progress)
    check_stats(plan, stats)
    return plan, record


def rank_units(request: ProtectRequest, naive: Plan, stats: ActivationStats, menu: Menu) -> Ranking:
    """Rank what may be protected; nothing is measured, and the unit of the menu's prices does not matter.

    Args:
        request: What the plan should be.
        naive: From `naive_plan`.
        stats: Of the calibration set.
        menu: Prices of the low scheme.

    Raises:
        UserError: A menu of another model, or with another prefix.
        PlanError: A menu without prices of the low scheme.
    """
    if menu.provenance.model != naive.model:
        theirs, ours = brief(menu.provenance.model), brief(naive.model)
        raise UserError(f"these prices are of the model {theirs}, this is {ours}; run `qarat damage` on it")
    if menu.prefix != naive.prefix:
        raise UserError(
            f"these prices are with the prefix {list(menu.prefix)}, the plan has {list(naive.prefix)}; run "
            "`qarat damage` with the stats of the plan"
        )
    # A rule pins what it matches, also where it says the low scheme.
    pinned = {s for pattern, _ in request.overrides() for s in match_sites(pattern, naive.sites)}
    open_sites = [s for s in naive.sites if s not in pinned]
    units = make_units(open_sites, tied=request.runtime in ENGINES_THAT_FUSE)
    damages = menu.damages(naive.low)
    missing = [site for unit in units for site in unit.sites if site not in damages]
    if missing:
        more = f" and {len(missing) - 1} more sites" if len(missing) > 1 else ""
        raise PlanError(f"the menu has no price of {naive.low} at {missing[0]}{more}; run `qarat damage` with it")
    by_damage = rank_by_damage(units, damages)
    if request.sites:
        named = {s.name for pattern in request.sites for s in match_sites(pattern, naive.sites)}
        order = f"the list {', '.join(request.sites)}"
        return Ranking(_first(by_damage, named), order, damages, _count(by_damage, named), menu.unit)
    if request.by == "damage":
        return Ranking(by_damage, f"{menu.metric.capitalize()} damage", damages, unit=menu.unit)
    verdict = find_spikes(stats, request.by, input_scheme(naive.low))
    flagged = {s.name for s in sites_of(verdict, naive.sites)}
    order = f"the spike rule {request.by}: {verdict.statement}"
    return Ranking(_first(by_damage, flagged), order, damages, _count(by_damage, flagged), menu.unit)


def _first(units: Sequence[Unit], named: set[str]) -> tuple[Unit, ...]:
    """Units with a named site in front, each part in the order given."""
    return tuple(sorted(units, key=lambda u: not named.intersection(u.sites)))


def _count(units: Sequence[Unit], named: set[str]) -> int:
    return sum(bool(named.intersection(u.sites)) for u in units)


def _check_origin(model: Model, stats: ActivationStats) -> None:
    if stats.provenance.model != model.fingerprint:
        theirs, ours = brief(stats.provenance.model), brief(model.fingerprint)
        raise UserError(f"these stats are of the model {theirs}, this is {ours}; profile it anew")
