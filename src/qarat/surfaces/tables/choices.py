"""What was chosen and why: predicted prices, the measured protection, the plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from qarat.ground.errors import UserError
from qarat.surfaces.tables.data import DataTable, Parts, bold, dim, marked, numbers, pairs, table, texts, title
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
from qarat.values.records.prices import Menu, MenuEntry, Protection, Trial
from qarat.values.sites import Site, short_name
from qarat.values.units import Unit

ROWS = 10  # of a ranking; what is left out is said below it
OTHERS = 40  # sites listed that are not in the low scheme


def show_menu(
    record: Menu, *, plan: Plan | None = None, sites: Sequence[Site] = (), protection: Protection | None = None
) -> Parts:
    """The dearest sites under every scheme; where sites were measured alone, that beside what was predicted."""
    origin = record.provenance
    _same_model("menu", origin.model, plan=plan and plan.model, protection=protection and protection.provenance.model)
    schemes = list(dict.fromkeys(e.scheme for e in record.entries))
    parameters = {s.name: s.parameters for s in (sites or (plan.sites if plan else ()))}
    # What was measured had the plan's low scheme; without the plan, a menu of one scheme leaves no doubt.
    measured = plan.low if plan else schemes[0] if len(schemes) == 1 else None
    yield title("predicted damage", origin.model, record.metric)
    yield dim(origin.convention)
    if not record.in_nats:
        yield f"prices are {record.unit}: they rank sites, and say nothing of the loss"
    for scheme in schemes:
        entries = sorted((e for e in record.entries if e.scheme == scheme), key=lambda e: -e.damage)
        alone = {t.sites[0]: t for t in protection.alone} if protection and scheme == measured else {}
        yield from ("", bold(scheme), *_prices(entries, parameters, alone, record.in_nats))


def _prices(
    entries: Sequence[MenuEntry], parameters: Mapping[str, int], alone: Mapping[str, Trial], in_nats: bool
) -> Parts:
    """One scheme's prices: the dearest sites, and those whose damage was measured too."""
    total = math.fsum(e.damage for e in entries)
    shown = [e for i, e in enumerate(entries) if i < ROWS or e.site in alone]
    measured = {e.site: alone[e.site].damage for e in shown if e.site in alone}
    losses = [loss.nats for loss in measured.values()]
    # Nats stand beside nats; another unit has a precision of its own.
    digits = decimals([e.damage for e in shown] + (losses if in_nats else []))
    measured_digits = digits if in_nats else decimals(losses)
    unit = "nats" if in_nats else "price"
    dense = {e.site: e.damage / (parameters[e.site] / 1e6) for e in shown if parameters.get(e.site)}
    density = decimals(dense.values(), least=3)
    columns = numbers(
        f"damage\n({unit})", f"± SE\n({unit})", "share\n(%)", f"per 10⁶ parameters\n({unit})",
        "measured alone\n(nats)", "± SE\n(nats)",
    )  # fmt: skip
    rows = (
        (
            short_name(e.site),
            fixed(e.damage, digits),
            fixed(e.standard_error, digits),
            share(e.damage, total),
            fixed(dense[e.site], density) if e.site in dense else "",
            *(loss_and_error(measured[e.site], measured_digits, sign=False) if e.site in measured else ("", "")),
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
    """What a plan keeps in which scheme, what that weighs, and why the protected sites are protected."""
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
    yield from ("", _schemes(record), "")
    products = Counter(str(a.scheme) for a in record.assignments if a.site.kind == "product")
    for scheme, n in products.items():
        yield f"{count(n, 'attention product')} in {scheme}"
    others = record.exceptions()
    if not others or (protection and not protection.protected):
        yield "no projection is protected"
    if others:
        yield from ("", not_low(record, protection, OTHERS))
    if len(others) > OTHERS:
        yield dim(f"and {len(others) - OTHERS} more sites; the plan's file lists all")


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


def not_low(plan: Plan, protection: Protection | None, most: int | None = None) -> DataTable:
    """The sites that are not in the low scheme; of those that are protected, what leaving them low would cost."""
    recoveries = protection.recoveries if protection else ()
    total = sum(a.site.parameters for a in plan.assignments)
    digits = decimals([t.damage.nats for t in recoveries])
    recovered: dict[str, tuple[str, str]] = {}
    for trial in recoveries:
        first, *tied = trial.sites
        recovered[first] = loss_and_error(trial.damage, digits, sign=False)
        recovered |= {site: (f"with {short_name(first)}", "") for site in tied}
    columns = (
        *texts("not low", wrap=False), *texts("scheme"), *numbers("parameters\n(%)"),
        *(numbers("recovers\n(nats)", "± SE\n(nats)") if recoveries else ()), *texts("reason", style="dim"),
    )  # fmt: skip
    return table(
        columns,
        (
            (
                short_name(a.site.name),
                str(a.scheme),
                share(a.site.parameters, total, 2),
                *(recovered.get(a.site.name, ("", "")) if recoveries else ()),
                a.reason,
            )
            for a in plan.exceptions()[:most]
        ),
    )


def show_protection(record: Protection) -> Parts:
    """The measured plans in the order tried, what each protection buys, and the verdict."""
    digits = decimals([t.damage.nats for t in record.trials] + [record.budget_nats])
    budget = f"budget {record.budget} ({fixed(record.budget_nats, digits)} nats)"
    yield title("protection", record.provenance.model, budget)
    yield dim(f"{record.provenance.convention}{GAP}in the order of {record.order}")
    losses = numbers("loss over float\n(nats)", "± SE\n(nats)", "perplexity\n(%)")
    columns = (*numbers("k"), *texts("adds"), *losses, *texts("within\nbudget", wrap=False))
    rows = (
        marked(
            (
                str(k),
                label or "(nothing protected)",
                *loss_and_error(trial.damage, digits, sign=False),
                perplexity_change(trial.damage.nats),
                "yes" if trial.damage.nats <= record.budget_nats else "no",
            ),
            "bold" if trial.damage.nats <= record.budget_nats else "",
        )
        for k, (trial, label) in enumerate(added(record))
    )
    yield from ("", table(columns, rows), "")
    if record.recoveries:
        yield from ("leaving a protected site low again adds", _recoveries(record.recoveries), "")
    yield bold(record.verdict)


def added(record: Protection) -> Iterator[tuple[Trial, str]]:
    """Each trial with the unit that it protects and the one before did not; nothing for the first."""
    before: set[str] = set()
    for trial in record.trials:
        new = tuple(site for site in trial.sites if site not in before)
        yield trial, Unit(new, 0).label if new else ""
        before |= set(trial.sites)


def _recoveries(trials: Sequence[Trial]) -> DataTable:
    digits = decimals([t.damage.nats for t in trials])
    losses = (loss_and_error(t.damage, digits) for t in trials)
    rows = (
        (f"{GAP}{Unit(t.sites, 0).label}", f"{nats}{GAP}± {se} nats")
        for t, (nats, se) in zip(trials, losses, strict=True)
    )
    return pairs(rows)


def _same_model(kind: str, model: str, **others: str | None) -> None:
    strangers = [f"the {name} is of {brief(other)}" for name, other in others.items() if other and other != model]
    if strangers:
        raise UserError(f"the {kind} is of the model {brief(model)}, but " + " and ".join(strangers))
