"""One scheme of the landscape: whether it fits and who runs it, and its best recipe, from predictions alone.

The recipe is what `qarat run` would do: rewrite the model, where steps can be fitted, then keep the cheapest set of
sites in float for what the budget leaves, which a knapsack gives exactly. Nothing is measured, so what stays low may be
predicted to lose only a part of the budget (`qarat.jobs.rewriting.CAUTION`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import msgspec

from qarat.jobs.engine_answers import SIMULATED, answers
from qarat.jobs.estimates import quantized_bytes
from qarat.jobs.protecting import draft_plan
from qarat.jobs.rewriting import CAUTION, REWRITE, fewest_columns, pays, reaching, refusal
from qarat.jobs.transforming import outline
from qarat.model.model import Model
from qarat.stages.choose.candidates import Candidates, price_of
from qarat.values.budgets import LossBudget
from qarat.values.parsing import parse_scheme
from qarat.values.records.advice import AdvisedScheme, EngineAnswer, LeftOut
from qarat.values.records.prices import Menu
from qarat.values.records.rewrites import Rewrites
from qarat.values.requests.protect import ENGINES_THAT_FUSE, ProtectRequest
from qarat.values.schemes import FLOAT, CacheScheme, LinearScheme, Scheme
from qarat.values.sites import Site
from qarat.values.units import Unit, make_units

KEPT = "kept in float"


class Considered(NamedTuple):
    """A scheme that is looked at.

    Attributes:
        name: Short.
        low: Its spelling.
        scheme: The same.
        engines: What is known of each.
        rewritten: Whether steps of its inputs can be fitted.
    """

    name: str
    low: str
    scheme: LinearScheme | CacheScheme
    engines: tuple[EngineAnswer, ...]
    rewritten: bool

    @property
    def weights(self) -> LinearScheme | None:
        """Its weights alone, where rewriting does not price them: only integers' steps follow the scales."""
        weight = self.scheme.weight
        plain = self.rewritten and weight is not None and not weight.number_format.is_integer
        return LinearScheme(weight) if plain else None


class Drafted(NamedTuple):
    """A recipe, the request of its plan, and the rewrites behind it, if there are any."""

    advised: AdvisedScheme
    request: ProtectRequest
    rewrites: Rewrites | None


class _Prepared(NamedTuple):
    """What is done first, and what each unit then costs low.

    Attributes:
        request: Of the plan, transforms in it.
        model: Of the shapes that these give.
        units: Decided together.
        damages: Price of each of their sites, nats per token.
        told: What `qarat run` (of caches `qarat search`) would not do by itself, by argument.
    """

    request: ProtectRequest
    model: Model
    units: Sequence[Unit]
    damages: Mapping[str, float]
    told: dict[str, str]


def consider(model: Model, name: str, low: str, engines: Sequence[str]) -> Considered | LeftOut:
    """Whether a scheme is worth looking at.

    Args:
        model: In float.
        name: Short.
        low: Spelling of the scheme.
        engines: That must run it; none for any.
    """
    scheme = cast(LinearScheme | CacheScheme, parse_scheme(low))
    if why := misfit(scheme, model.sites()):
        return LeftOut(name, low, why)
    known = answers(model, scheme, engines)
    if engines and (unable := [f"{a.engine}: {a.where}" for a in known if not a.runs]):
        return LeftOut(name, low, "; ".join(unable))
    return Considered(name, low, scheme, known, not refusal(model, low))


def misfit(scheme: Scheme, sites: Sequence[Site]) -> str:
    """Why groups of a scheme do not fit the projections or caches of a model, in words; empty if they do.

    Args:
        scheme: Of the projections, or of the caches.
        sites: Of the model.
    """
    widths = sorted({site.shape[1] if site.shape else site.width for site in sites if scheme.fits(site.kind)})
    tensors = (scheme.weight, *scheme.operands())
    groups = sorted({t.granularity.cols for t in tensors if t is not None and t.granularity.cols})
    odd = {group: [str(cols) for cols in widths if cols % group] for group in groups}
    return "; ".join(f"rows of {', '.join(o)} are no whole number of groups of {g}" for g, o in odd.items() if o)


def draft(
    model: Model, considered: Considered, menu: Menu, rewrites: Rewrites | None, budget: LossBudget, *, tied: bool
) -> Drafted:
    """A scheme with its recipe.

    Args:
        model: In float.
        considered: The scheme.
        menu: Prices of it at every site, and of `Considered.weights`.
        rewrites: Fitted for it, and left aside where they do not pay; None where it is not rewritten.
        budget: What may be lost.
        tied: Whether sites that an engine fuses share a scheme.
    """
    if rewrites is not None and not pays(rewrites):
        rewrites = None
    request, shaped, units, damages, told = _prepare(model, considered, menu, rewrites, budget.nats, tied)
    low, in_float = draft_plan(shaped, request), type(considered.scheme)()
    kept = Candidates(low, units, units, damages, in_float).cheapest(budget.nats / CAUTION)
    names = {site for unit in kept for site in unit.sites}
    plan = low.with_schemes(dict.fromkeys(names, in_float), KEPT)
    sizes = {unit: unit.parameters or len(unit.sites) for unit in units}
    advised = AdvisedScheme(
        considered.name,
        considered.low,
        math.fsum(menu.damages(considered.low).values()),
        "".join(request.transforms),
        math.fsum(price_of(unit, damages) for unit in units),
        math.fsum(price_of(unit, damages) for unit in units if unit not in kept),
        tuple(site.name for site in plan.sites if site.name in names),
        sum(sizes[unit] for unit in kept) / sum(sizes.values()),
        plan.bits_per_weight(),
        quantized_bytes(shaped, plan),
        considered.engines,
        {"low": considered.low, "budget": budget.spelling} | told,
        plan.cache_bits() // 8,
    )
    return Drafted(advised, request, rewrites)


def _prepare(
    model: Model, considered: Considered, menu: Menu, rewrites: Rewrites | None, budget: float, tied: bool
) -> _Prepared:
    if isinstance(considered.scheme, CacheScheme):
        return _prepare_caches(model, considered, menu, tied)
    request = ProtectRequest(low=considered.low, runtime=ENGINES_THAT_FUSE[0] if tied else "any")
    told = {} if tied else {"runtime": request.runtime}
    if rewrites is None:
        return _Prepared(request, model, make_units(model.sites(), tied=tied), menu.damages(considered.low), told)
    request = msgspec.structs.replace(request, low=reaching(considered.low))
    wider = fewest_columns(rewrites, budget)
    shapes = {n: msgspec.structs.replace(request, transforms=(f"{REWRITE}/{n}",)) for n in (wider, 0)}
    columns, shaped = wider, outline(model, shapes[wider])
    if misfit(considered.scheme, shaped.sites()):  # a transform that is named leaves the low scheme as it is given
        columns, shaped = 0, outline(model, shapes[0])
        told |= {"low": request.low, "transforms": shapes[0].transforms[0]}
    sizes = {site.name: site.parameters for site in shaped.sites()}
    # Sites that share a rewrite are one unit.
    units = tuple(Unit(s.sites, sum(sizes[site] for site in s.sites)) for s in rewrites.streams)
    weights = menu.damages(str(considered.weights)) if considered.weights else {}
    return _Prepared(shapes[columns], shaped, units, _by_site(rewrites, columns, weights), told)


def _prepare_caches(model: Model, considered: Considered, menu: Menu, tied: bool) -> _Prepared:
    """Weights in float; which caches stay so too a search decides, since a run has them as it is told.

    They share a scheme where an engine that would run it is asked for.
    """
    tied = tied and any(answer.runs not in ("", SIMULATED) for answer in considered.engines)
    runtime = ENGINES_THAT_FUSE[0] if tied else "any"
    request = ProtectRequest(low=FLOAT, rules=(f"*_cache: {considered.low}",), runtime=runtime)
    units = make_units([s for s in model.sites() if s.kind == "cache"], tied=tied, caches=True)
    told = {"low": FLOAT, "menu": considered.low} | ({"runtime": runtime} if tied else {})
    return _Prepared(request, model, units, menu.damages(considered.low), told)


def _by_site(rewrites: Rewrites, columns: int, weights: Mapping[str, float]) -> dict[str, float]:
    """Predicted behind rewrites, by site: of a stream's damage an equal part, and what its weight costs besides."""
    chosen = rewrites.choose(columns)
    pairs = ((chosen[stream.stream].damage / len(stream.sites), stream.sites) for stream in rewrites.streams)
    return {site: part + weights.get(site, 0.0) for part, sites in pairs for site in sites}
