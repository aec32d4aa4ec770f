"""What was chosen and why: predicted prices, the measured protection, the plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from qarat.ground.errors import UserError
from qarat.surfaces.tables.data import DataTable, Parts, bold, dim, marked, numbers, table, texts, title
from qarat.surfaces.tables.wording import (
    GAP,
    count,
    decimals,
    fixed,
    loss_and_error,
    megabytes,
    perplexity_change,
    share,
)
from qarat.values.fingerprints import brief
from qarat.values.plans import Assignment, Plan
from qarat.values.records.prices import NATS, Menu, MenuEntry, Protection
from qarat.values.sites import Site, short_name
from qarat.values.work import work_of

ROWS = 10  # of a ranking; what is left out is said below it
OTHERS = 40  # sites listed that are not in the low scheme


def show_menu(record: Menu, *, plan: Plan | None = None, sites: Sequence[Site] = ()) -> Parts:
    """The dearest sites under every scheme."""
    origin = record.provenance
    _same_model("menu", origin.model, plan=plan and plan.model)
    parameters = {s.name: s.parameters for s in (sites or (plan.sites if plan else ()))}
    yield title("predicted damage", origin.model, record.metric)
    yield dim(origin.convention)
    if not record.in_nats:
        yield f"prices are {record.unit}: they rank sites, and say nothing of the loss"
    for scheme in dict.fromkeys(e.scheme for e in record.entries):
        entries = sorted((e for e in record.entries if e.scheme == scheme), key=lambda e: -e.damage)
        yield from ("", bold(scheme), *_prices(entries, parameters, record.in_nats))


def _prices(entries: Sequence[MenuEntry], parameters: Mapping[str, int], in_nats: bool) -> Parts:
    """One scheme's prices: the dearest sites, and the sum of all."""
    total = math.fsum(e.damage for e in entries)
    shown = entries[:ROWS]
    digits = decimals([e.damage for e in shown])
    unit = "nats" if in_nats else "price"
    dense = {e.site: e.damage / (parameters[e.site] / 1e6) for e in shown if parameters.get(e.site)}
    density = decimals(dense.values(), least=3)
    columns = numbers(f"damage\n({unit})", f"± SE\n({unit})", "share\n(%)", f"per 10⁶ parameters\n({unit})")
    rows = (
        (
            short_name(e.site),
            fixed(e.damage, digits),
            fixed(e.standard_error, digits),
            share(e.damage, total),
            fixed(dense[e.site], density) if e.site in dense else "",
        )
        for e in shown
    )
    yield table((*texts("site", wrap=False), *columns), rows).used()
    sum_of_all = fixed(total, decimals([total]))
    footer = f"sum {f'predicted {sum_of_all} nats per token' if in_nats else sum_of_all} over {len(entries)} sites"
    if len(shown) < len(entries):
        footer += f"; the {len(shown)} shown make {share(math.fsum(e.damage for e in shown), total)} % of it"
    yield from ("", footer)


def show_plan(record: Plan, *, protection: Protection | None = None) -> Parts:
    """What a plan keeps in which scheme, what that weighs, and why the other sites have another scheme."""
    _same_model("plan", record.model, protection=protection and protection.provenance.model)
    yield title(
        "plan",
        record.model,
        f"Q_r {fixed(100 * record.ratio(), 1)} % by parameters",
        f"{fixed(record.bits_per_weight(), 3)} bits per weight",
        f"{megabytes(record.weight_bits())} MB of weights",
    )
    if record.note:
        yield dim(record.note)
    if record.prefix:
        yield f"the first {count(len(record.prefix), 'token')} of a sequence in float at every site"
    if record.tuned:
        yield f"projections in float tuned for {count(record.tuned, 'step')} to predict as the float model"
    yield from ("", _schemes(record), "", _work(record))
    products = Counter(str(a.scheme) for a in record.assignments if a.site.kind == "product")
    for scheme, n in products.items():
        yield f"{count(n, 'attention product')} in {scheme}"
    caches = Counter(str(a.scheme) for a in record.assignments if a.site.kind == "cache")
    for scheme, n in caches.items():
        yield f"{count(n, 'cache')} in {scheme}"
    if not record.keeps_caches_in_float:
        floats = record.in_float().cache_bits() / 8
        yield f"{record.cache_bits() / 8:,.0f} bytes of keys and values a token, {floats:,.0f} in float"
    others = record.exceptions()
    if counted := sum(a.site.kind == "projection" and record.is_low(a) for a in others):
        yield f"Q_r goes by weight bits: {count(counted, 'site')} of another scheme with no more bits counts as low too"
    if not others or (protection and not protection.protected):
        yield "no projection is protected"
    if others:
        yield from ("", not_low(record, OTHERS))
    if len(others) > OTHERS:
        yield dim(f"and {len(others) - OTHERS} more sites; the plan's file lists all")


def _work(plan: Plan) -> str:
    """What is computed for a token, the elementwise work beside the products."""
    work = work_of(plan)
    parts = f"{work.scalings:,} with scales, {work.roundings:,} roundings, {work.others:,} of norms and activations"
    beside = f"{work.elementwise:,} elementwise ({parts})"
    return f"a token: {work.macs:,} multiply-accumulates, {beside}; attention's own left out"


def _schemes(plan: Plan) -> DataTable:
    """What the projections are kept in, and what it costs."""
    groups: dict[str, list[Assignment]] = {}
    for a in plan.assignments:
        if a.site.kind == "projection":
            groups.setdefault(str(a.scheme), []).append(a)
    total = sum(a.site.parameters for a in plan.assignments)

    def row(name: str, sites: int, parameters: int, bits: int) -> tuple[str, ...]:
        mean = fixed(bits / parameters if parameters else math.nan, 3)
        return name, str(sites), f"{parameters:,}", share(parameters, total), mean, megabytes(bits)

    rows = [
        row(scheme, len(members), sum(a.site.parameters for a in members), sum(map(plan.site_bits, members)))
        for scheme, members in sorted(groups.items(), key=lambda item: -sum(a.site.parameters for a in item[1]))
    ]
    sums = marked(row("total", sum(map(len, groups.values())), total, plan.weight_bits()), "bold")
    columns = (*texts("scheme"), *numbers("sites", "parameters", "share (%)", "bits per weight", "MB"))
    return table(columns, [*rows, sums], total=True)


def not_low(plan: Plan, most: int | None = None) -> DataTable:
    """The sites that are not in the low scheme, each with its reason."""
    total = sum(a.site.parameters for a in plan.assignments)
    columns = (*texts("not low", wrap=False), *texts("scheme"), *numbers("parameters\n(%)"))
    rows = (
        (short_name(a.site.name), str(a.scheme), share(a.site.parameters, total, 2), a.reason)
        for a in plan.exceptions()[:most]
    )
    return table((*columns, *texts("reason", style="dim")), rows)


def show_protection(record: Protection, *, plan: Plan | None = None) -> Parts:
    """The measured plans in the order tried, what was predicted of each, and the verdict."""
    origin = record.provenance
    _same_model("protection", origin.model, plan=plan and plan.model)
    digits = decimals([t.damage.nats for t in record.trials] + [record.budget_nats])
    budget = f"budget {record.budget} ({fixed(record.budget_nats, digits)} nats)"
    yield title("protection", origin.model, budget)
    yield dim(f"{origin.convention}{GAP}chosen by {record.order}")
    in_nats = record.unit == NATS
    columns = numbers(
        "share\n(%)", f"predicted\n({'nats' if in_nats else 'price'})", "loss over\nfloat (nats)", "± SE\n(nats)",
        "perplexity\n(%)",
    )  # fmt: skip
    predicted_digits = digits if in_nats else decimals(record.predicted)
    shares = protected_shares(record, plan) if plan else None
    rows = (
        marked(
            (
                trial.label,
                "" if shares is None else fixed(shares[i], 2),
                fixed(record.predicted[i], predicted_digits),
                *loss_and_error(trial.damage, digits, sign=False),
                perplexity_change(trial.damage.nats),
                "yes" if trial.damage.nats <= record.budget_nats else "no",
            ),
            "bold" if frozenset(trial.sites) == record.protected else "",
        )
        for i, trial in enumerate(record.trials)
    )
    columns = (*texts("measured\nplan"), *columns, *texts("within\nbudget", wrap=False))
    yield from ("", table(columns, rows).used(), "", bold(record.verdict))


def protected_shares(record: Protection, plan: Plan) -> tuple[float, ...]:
    """Of each measured plan, the parameters protected, in per cent of all sites'."""
    sizes = {site.name: site.parameters for site in plan.sites}
    return tuple(100 * sum(sizes[s] for s in trial.sites) / sum(sizes.values()) for trial in record.trials)


def _same_model(kind: str, model: str, **others: str | None) -> None:
    strangers = [f"the {name} is of {brief(other)}" for name, other in others.items() if other and other != model]
    if strangers:
        raise UserError(f"the {kind} is of the model {brief(model)}, but " + " and ".join(strangers))
