"""Planning: stats and prices become a plan, by measurement. Where the stages of a plan are put together.

This is the one recipe behind `qarat plan`, `qarat run` and the Python API; the stages themselves do not know each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qarat.conversion import WeightCache, build_block, check_stats
from qarat.data import TokenSet
from qarat.errors import UserError
from qarat.evaluation.incremental import Meter
from qarat.formats import nearest_names
from qarat.models import Model
from qarat.plans import Plan, PlanError, assign, match_sites, parse_budget
from qarat.recordfiles import content_hash
from qarat.records import ActivationStats, Menu, Sweep
from qarat.schemes import LinearScheme, parse_scheme
from qarat.search import Unit, make_units, rank_by_damage, sweep
from qarat.spikes import RULES, find_spikes, sites_of
from qarat.workspace import Progress, no_progress

__all__ = ["LOW", "PROTECTIONS", "Request", "find_plan", "naive_plan"]

LOW = "w=int8/channel a=int8/tensor/static"
PROTECTIONS = {
    "float": "float",
    "fp8": "w=e4m3/tensor a=e4m3/tensor/static",
    "fp8-e5m2": "w=e5m2/tensor a=e5m2/tensor/static",
}
ENGINES_THAT_FUSE = ("vllm",)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan should be.

    Attributes:
        low: Scheme of every projection that is not protected.
        protect: ``float``, ``fp8``, ``fp8-e5m2`` or the spelling of a scheme.
        budget: ``ppl+1%`` or ``nats+0.05``.
        by: ``damage`` (ranked by damage per parameter, confirmed by the measured sweep) or a spike rule (its sites alone).
        sites: Patterns of the sites to protect, instead of choosing them.
        rules: Ordered ``pattern: scheme`` overrides, last match wins; they are part of every plan that is tried.
        runtime: ``any``, or an engine that fuses q/k/v and gate/up, so that they must share a scheme: ``vllm``.
    """

    low: str = LOW
    protect: str = "float"
    budget: str = "ppl+1%"
    by: str = "damage"
    sites: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    runtime: str = "any"

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            UserError: Malformed or unknown words.
        """
        parse_scheme(self.low)
        parse_scheme(self.protection)
        parse_budget(self.budget)
        if self.by != "damage" and self.by not in RULES:
            raise UserError(f"--by {self.by}: {nearest_names(self.by, ['damage', *RULES])}")
        if self.runtime not in ("any", *ENGINES_THAT_FUSE):
            raise UserError(f"--runtime {self.runtime}: known are any, {', '.join(ENGINES_THAT_FUSE)}")
        self.overrides()

    @property
    def protection(self) -> str:
        """Spelling of the scheme that protected sites get."""
        return PROTECTIONS.get(self.protect, self.protect)

    def overrides(self) -> tuple[tuple[str, str], ...]:
        """The rules as (pattern, spelling) pairs.

        Raises:
            PlanError: A rule without a colon.
        """
        pairs = []
        for rule in self.rules:
            pattern, colon, spelling = rule.partition(":")
            if not colon:
                raise PlanError(f"{rule!r} is no rule; write PATTERN: SCHEME, e.g. '*.down_proj: w=int8/channel a=int8/token'")
            parse_scheme(spelling.strip())
            pairs.append((pattern.strip(), spelling.strip()))
        return tuple(pairs)


def naive_plan(model: Model, request: Request, stats: ActivationStats) -> Plan:
    """Everything low, with the request's overrides: what a plan is compared with.

    Raises:
        PlanError: A pattern that matches nothing, a scheme that does not fit, ties broken.
        UserError: Stats of another model, or streams missing.
    """
    _check_origin(model, stats)
    plan = assign(
        model.fingerprint, model.source_bits, model.sites(), request.low, request.overrides(), content_hash(stats)
    )
    if request.runtime in ENGINES_THAT_FUSE:
        plan.check_ties()
    check_stats(plan, stats)
    return plan


def find_plan(
    model: Model,
    request: Request,
    stats: ActivationStats,
    menu: Menu,
    selection: TokenSet,
    *,
    progress: Progress = no_progress,
) -> tuple[Plan, Sweep]:
    """Choose the sites to protect, and measure what each protection buys.

    Args:
        model: In float.
        request: What the plan should be.
        stats: Of the calibration set.
        menu: Prices of the low scheme.
        selection: The selection set, on which choices are measured.
        progress: Called after every measurement.

    Raises:
        PlanError: As `naive_plan`; or a menu without prices of the low scheme.
    """
    naive = naive_plan(model, request, stats)
    protect = parse_scheme(request.protection)
    overridden = {a.site for a in naive.exceptions()}
    open_sites = [s for s in naive.sites if s not in overridden]
    units = make_units(open_sites, tied=request.runtime in ENGINES_THAT_FUSE)
    ranked, order, exactly = _rank(request, units, naive, stats, menu)
    cache: WeightCache = {}
    meter = Meter(model, selection, lambda index, schemes: build_block(model, index, schemes, stats, cache))
    plan, record = sweep(
        naive, ranked, protect, parse_budget(request.budget), meter.measure, order=order, exactly=exactly, progress=progress
    )
    check_stats(plan, stats)
    return plan, record


def _rank(
    request: Request, units: Sequence[Unit], naive: Plan, stats: ActivationStats, menu: Menu
) -> tuple[tuple[Unit, ...], str, int | None]:
    """Candidates, what ranked them, and how many to take (None: as many as the budget needs)."""
    damages = menu.damages(naive.low)
    missing = [site for unit in units for site in unit.sites if site not in damages]
    if missing:
        raise PlanError(f"the menu has no price of {naive.low} at {missing[0]} and {len(missing) - 1} more sites; price again")
    by_damage = rank_by_damage(units, damages)
    if request.sites:
        named = {s.name for pattern in request.sites for s in match_sites(pattern, naive.sites)}
        return _first(by_damage, named), f"the list {', '.join(request.sites)}", _count(by_damage, named)
    if request.by == "damage":
        return by_damage, "Fisher damage per parameter", None
    low = parse_scheme(naive.low)
    assert isinstance(low, LinearScheme)
    verdict = find_spikes(stats, request.by, low.input)
    flagged = {s.name for s in sites_of(verdict, naive.sites)}
    return _first(by_damage, flagged), f"the spike rule {request.by}: {verdict.statement}", _count(by_damage, flagged)


def _first(units: Sequence[Unit], named: set[str]) -> tuple[Unit, ...]:
    """Units with a named site in front, each part in the order given."""
    return tuple(sorted(units, key=lambda u: not named.intersection(u.sites)))


def _count(units: Sequence[Unit], named: set[str]) -> int:
    return sum(bool(named.intersection(u.sites)) for u in units)


def _check_origin(model: Model, stats: ActivationStats) -> None:
    if stats.provenance.model != model.fingerprint:
        raise UserError(
            f"these stats are of the model {stats.provenance.model[:12]}…, this is {model.fingerprint[:12]}…; profile it anew"
        )
