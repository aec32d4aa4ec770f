"""A search as tables: what each budget reaches, the curve behind it, and what finding out cost."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.surfaces.tables.layout import (
    cells,
    count,
    decimals,
    fixed,
    label,
    number,
    perplexity_change,
    table,
    title,
    words,
)
from qarat.values.records.origin import Difference
from qarat.values.records.search import Reached, SearchResult, SearchTrial, interval_words, pareto

ROWS = 24  # of the curve; a longer one is thinned evenly


def show_search(record: SearchResult) -> RenderableType:
    """A search: budgets first, then the curve, then the cost."""
    facts = (record.strategy, f"{record.granularity}-wise", f"Q_r by {record.basis}", f"low {record.menu[0]}")
    parts: list[RenderableType] = [title("search", record.provenance.model, *facts)]
    if record.reached:
        parts += [_budgets(record), Text(), *(words(f"{r.budget}: {r.verdict}") for r in record.reached), Text()]
    parts += [_curve(record), *map(words, _adding_up(record)), words(_cost(record), "dim")]
    failed = [t for t in record.trials if t.failure]
    if failed:
        parts.append(words(f"{count(len(failed), 'plan')} could not be measured; the first: {failed[0].failure}"))
    return Group(*parts)


def _budgets(record: SearchResult) -> RenderableType:
    header = "Q_r" if record.axis == "ratio" else "bits"
    out = table(
        label("budget"),
        number(header),
        number("95 % interval"),
        number("bits per\nweight"),
        number("Δ loss, selection\n(nats)"),
        number("Δ loss, report\n(nats)"),
        number("Δ perplexity,\nreport (%)"),
    )
    for reached in record.reached:
        cells(out, reached.budget, *_budget_cells(record, reached))
    return out


def _budget_cells(record: SearchResult, reached: Reached) -> tuple[str, ...]:
    if reached.trial < 0:
        return ("none", "", "", "", "", "")
    trial = record.trials[reached.trial]
    report = record.on_report(reached)
    return (
        fixed(abs(trial.position(record.axis)), 3),
        interval_words(reached.low, reached.high),
        fixed(trial.bits, 2),
        with_error(trial.damage),
        with_error(report),
        "" if math.isnan(report.nats) else perplexity_change(report.nats),
    )


def _curve(record: SearchResult) -> RenderableType:
    trials = pareto(record.trials, record.axis)
    step = max(1, -(-len(trials) // ROWS))
    shown = [t for i, t in enumerate(trials) if i % step == 0 or i == len(trials) - 1]
    digits = decimals([t.damage.nats for t in shown if not t.failure])
    out = table(
        label("trial"), number("Q_r"), number("bits per\nweight"), number(f"predicted\n({record.metric or 'none'})"),
        number("Δ loss\n(nats)"), number("± SE"), number("Δ perplexity\n(%)"),
    )  # fmt: skip
    for trial in shown:
        cells(out, *_curve_cells(trial, digits))
    return Group(words("The curve: no measured plan is both cheaper and better than one of these", "dim"), out)


def _curve_cells(trial: SearchTrial, digits: int) -> tuple[str, ...]:
    predicted = "" if math.isnan(trial.predicted) else fixed(trial.predicted, digits)
    return (
        trial.label,
        fixed(trial.ratio, 3),
        fixed(trial.bits, 2),
        predicted,
        fixed(trial.damage.nats, digits, sign=True),
        fixed(trial.damage.standard_error, digits),
        perplexity_change(trial.damage.nats),
    )


def _adding_up(record: SearchResult) -> Iterable[str]:
    """How the plans' losses compare with the sums of their sites' predictions."""
    fit = record.correction
    if fit.pairs:
        middle = math.sqrt(fit.smallest * fit.largest)
        power = f" (to the power {fixed(fit.power, 2)})" if fit.power != 1 else ""
        left = "" if math.isnan(fit.residual) else f"; {fixed(100 * fit.residual, 0)} % are left unexplained"
        yield (
            f"Damages add up to {fixed(fit.apply(middle) / middle, 2)} times their sum{power} over "
            f"{count(fit.pairs, 'plan')}{left}"
        )


def _cost(record: SearchResult) -> str:
    total = record.cost.pricing + record.cost.measuring
    return (
        f"{count(len(record.trials), 'plan')} tried; {total:,} block × token forwards "
        f"({record.cost.pricing:,} for prices, {record.cost.measuring:,} for measurements)"
    )


def with_error(difference: Difference) -> str:
    """A loss and its standard error; empty where there is none."""
    if math.isnan(difference.nats):
        return ""
    digits = decimals([difference.nats])
    return f"{fixed(difference.nats, digits, sign=True)} ± {fixed(difference.standard_error, digits)}"
