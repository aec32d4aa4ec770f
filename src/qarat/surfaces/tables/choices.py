"""What was chosen and why, as tables: predicted prices, the measured sweep, the plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.ground.errors import UserError
from qarat.surfaces.tables.layout import (
    GAP,
    bare,
    cells,
    count,
    decimals,
    fixed,
    label,
    megabytes,
    number,
    perplexity_change,
    share,
    table,
    title,
    words,
)
from qarat.values.fingerprints import brief
from qarat.values.plans import Assignment, Plan
from qarat.values.records.prices import Menu, MenuEntry
from qarat.values.records.protection import Protection, Trial
from qarat.values.sites import Site, short_name
from qarat.values.units import Unit

ROWS = 10  # of a ranking; what is left out is said below it
OTHERS = 40  # sites listed that are not in the low scheme


def show_menu(
    record: Menu, *, plan: Plan | None = None, sites: Sequence[Site] = (), sweep: Protection | None = None
) -> RenderableType:
    """The dearest sites under every scheme; with a sweep, the measured damage beside the predicted one."""
    _same_model("menu", record.provenance.model, plan=plan and plan.model, sweep=sweep and sweep.provenance.model)
    schemes = list(dict.fromkeys(e.scheme for e in record.entries))
    parameters = {s.name: s.parameters for s in (sites or (plan.sites if plan else ()))}
    # A sweep measured the plan's low scheme; without the plan, a menu of one scheme leaves no doubt.
    swept = plan.low if plan else schemes[0] if len(schemes) == 1 else None
    parts: list[RenderableType] = [
        title("predicted damage", record.provenance.model, record.metric),
        words(record.provenance.convention, "dim"),
    ]
    if not record.in_nats:
        parts.append(words(f"prices are {record.unit}: they rank sites, and say nothing of the loss"))
    for scheme in schemes:
        entries = sorted((e for e in record.entries if e.scheme == scheme), key=lambda e: -e.damage)
        alone = {t.sites[0]: t for t in sweep.alone} if sweep and scheme == swept else {}
        parts += [Text(), words(scheme, "bold"), *_prices(entries, parameters, alone, record.in_nats)]
    return Group(*parts)


def _prices(
    entries: Sequence[MenuEntry], parameters: Mapping[str, int], alone: Mapping[str, Trial], in_nats: bool
) -> tuple[RenderableType, ...]:
    """One scheme's prices: the dearest sites, and those whose damage was measured too."""
    total = math.fsum(e.damage for e in entries)
    shown = [e for i, e in enumerate(entries) if i < ROWS or e.site in alone]
    measured = [alone[e.site].damage.nats for e in shown if e.site in alone]
    # Nats stand beside nats; another unit has a precision of its own.
    digits = decimals([e.damage for e in shown] + (measured if in_nats else []))
    measured_digits = digits if in_nats else decimals(measured)
    unit = "nats" if in_nats else "price"
    per_million = {e.site: e.damage / (parameters[e.site] / 1e6) for e in shown if parameters.get(e.site)}
    density = decimals(per_million.values(), least=3)
    columns = [label("site", wrap=False), number(f"damage\n({unit})"), number(f"± SE\n({unit})"), number("share\n(%)")]
    if per_million:
        columns.append(number(f"per 10⁶ parameters\n({unit})"))
    if alone:
        columns += [number("measured alone\n(nats)"), number("± SE\n(nats)")]
    out = table(*columns)
    for e in shown:
        row = [short_name(e.site), fixed(e.damage, digits), fixed(e.standard_error, digits), share(e.damage, total)]
        if per_million:
            row.append(fixed(per_million[e.site], density) if e.site in per_million else "")
        if alone:
            difference = alone[e.site].damage if e.site in alone else None
            figures = (difference.nats, difference.standard_error) if difference else ()
            row += [fixed(f, measured_digits) for f in figures] or ["", ""]
        cells(out, *row)
    seen = share(math.fsum(e.damage for e in shown), total)
    what = f"predicted {fixed(total, decimals([total]))} nats per token" if in_nats else fixed(total, decimals([total]))
    footer = f"sum {what} over {len(entries)} sites"
    if len(shown) < len(entries):
        footer += f"; the {len(shown)} shown make {seen} % of it"
    return out, Text(), words(footer)


def show_plan(record: Plan, *, sweep: Protection | None = None) -> RenderableType:
    """What a plan keeps in which scheme, what that weighs, and why the protected sites are protected."""
    _same_model("plan", record.model, sweep=sweep and sweep.provenance.model)
    facts = (
        f"Q_r {fixed(100 * record.ratio(), 1)} % by parameters",
        f"{fixed(record.bits_per_weight(), 3)} bits per weight",
        f"{megabytes(record.weight_bits())} MB of weights",
    )
    parts: list[RenderableType] = [title("plan", record.model, *facts)]
    if record.note:
        parts.append(words(record.note, "dim"))
    if record.prefix:
        parts.append(words(f"the first {count(len(record.prefix), 'token')} of a sequence in float at every site"))
    parts += [Text(), _schemes(record)]
    products = Counter(str(a.scheme) for a in record.assignments if a.site.kind == "product")
    parts += [Text(), *(words(f"{count(n, 'attention product')} in {scheme}") for scheme, n in products.items())]
    others = record.exceptions()
    if not others or (sweep and not sweep.protected):
        parts += [words("no projection is protected")]
    if others:
        parts += [Text(), _others(record, others[:OTHERS], sweep.recoveries if sweep else ())]
    if len(others) > OTHERS:
        parts.append(words(f"and {len(others) - OTHERS} more sites; the plan's file lists all", "dim"))
    return Group(*parts)


def _schemes(plan: Plan) -> RenderableType:
    """What the projections are kept in, and what it costs."""
    groups: dict[str, list[Assignment]] = {}
    for a in plan.assignments:
        if a.site.kind == "projection":
            groups.setdefault(str(a.scheme), []).append(a)
    out = table(
        label("scheme"),
        number("sites"),
        number("parameters"),
        number("share (%)"),
        number("bits per weight"),
        number("MB"),
    )
    total = sum(a.site.parameters for a in plan.assignments)

    def add(name: str, sites: int, parameters: int, bits: int, style: str = "") -> None:
        mean = fixed(bits / parameters if parameters else math.nan, 3)
        cells(out, name, str(sites), f"{parameters:,}", share(parameters, total), mean, megabytes(bits), style=style)

    for scheme, members in sorted(groups.items(), key=lambda item: -sum(a.site.parameters for a in item[1])):
        add(scheme, len(members), sum(a.site.parameters for a in members), sum(map(plan.site_bits, members)))
    out.add_section()
    add("total", sum(map(len, groups.values())), total, plan.weight_bits(), "bold")
    return out


def _others(plan: Plan, others: Sequence[Assignment], recoveries: Sequence[Trial]) -> RenderableType:
    """The sites that are not in the low scheme; of those that are protected, what leaving them low would cost."""
    total = sum(a.site.parameters for a in plan.assignments)
    digits = decimals([t.damage.nats for t in recoveries])
    recovered: dict[str, tuple[str, str]] = {}
    for trial in recoveries:
        first, *tied = trial.sites
        recovered[first] = fixed(trial.damage.nats, digits), fixed(trial.damage.standard_error, digits)
        recovered |= {site: (f"with {short_name(first)}", "") for site in tied}
    measured = [number("recovers\n(nats)"), number("± SE\n(nats)")] if recoveries else []
    out = table(
        label("not low", wrap=False),
        label("scheme"),
        number("parameters\n(%)"),
        *measured,
        label("reason", style="dim"),
    )
    for a in others:
        figures = recovered.get(a.site.name, ("", "")) if recoveries else ()
        cells(out, short_name(a.site.name), str(a.scheme), share(a.site.parameters, total, 2), *figures, a.reason)
    return out


def show_sweep(record: Protection) -> RenderableType:
    """The measured plans in the order tried, what each protection buys, and the verdict."""
    digits = decimals([t.damage.nats for t in record.trials] + [record.budget_nats])
    budget = f"budget {record.budget} ({fixed(record.budget_nats, digits)} nats)"
    out = table(
        number("k"),
        label("adds"),
        number("loss over float\n(nats)"),
        number("± SE\n(nats)"),
        number("perplexity\n(%)"),
        label("within\nbudget", wrap=False),
    )
    before: set[str] = set()
    for k, trial in enumerate(record.trials):
        within = trial.damage.nats <= record.budget_nats
        added = tuple(site for site in trial.sites if site not in before)
        cells(
            out,
            str(k),
            Unit(added, 0).label if added else "(nothing protected)",
            fixed(trial.damage.nats, digits),
            fixed(trial.damage.standard_error, digits),
            perplexity_change(trial.damage.nats),
            "yes" if within else "no",
            style="bold" if within else "",
        )
        before |= set(trial.sites)
    parts = [
        title("sweep", record.provenance.model, budget),
        words(f"{record.provenance.convention}{GAP}in the order of {record.order}", "dim"),
        Text(),
        out,
        Text(),
    ]
    if record.recoveries:
        parts += [Text("leaving a protected site low again adds"), _recoveries(record.recoveries), Text()]
    return Group(*parts, words(record.verdict, "bold"))


def _recoveries(trials: Sequence[Trial]) -> RenderableType:
    out = bare(label("", wrap=False), number(""), label(""))
    digits = decimals([t.damage.nats for t in trials])
    for trial in trials:
        nats, error = fixed(trial.damage.nats, digits, sign=True), fixed(trial.damage.standard_error, digits)
        cells(out, f"{GAP}{Unit(trial.sites, 0).label}", nats, f"± {error} nats")
    return out


def _same_model(what: str, model: str, **others: str | None) -> None:
    strangers = [f"the {name} is of {brief(other)}" for name, other in others.items() if other and other != model]
    if strangers:
        raise UserError(f"the {what} is of the model {brief(model)}, but " + " and ".join(strangers))
