"""A search: what each budget reaches, the curve behind it, and what finding out cost."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qarat.surfaces.tables.data import DataTable, Parts, dim, numbers, table, texts, title
from qarat.surfaces.tables.wording import count, decimals, fixed, loss_and_error, perplexity_change, with_error
from qarat.values.records.search import Reached, SearchResult, SearchTrial, interval_words, pareto

ROWS = 24  # of the curve; a longer one is thinned evenly


def show_search(record: SearchResult) -> Parts:
    """A search: budgets first, then the curve, then the cost."""
    facts = (record.strategy, f"{record.granularity}-wise", f"Q_r by {record.basis}", f"low {record.menu[0]}")
    yield title("search", record.provenance.model, *facts)
    if record.reached:
        yield budgets(record)
        yield from ("", *verdicts(record), "")
    if record.context:
        yield dim(sizes(record))
    yield dim("The curve: no measured plan is both cheaper and better than one of these")
    yield _curve(record)
    yield from adding_up(record)
    yield dim(cost(record))
    failed = [t for t in record.trials if t.failure]
    if failed:
        yield f"{count(len(failed), 'plan')} could not be measured; the first: {failed[0].failure}"


def budgets(record: SearchResult) -> DataTable:
    """What each budget reaches."""
    losses = ("Δ loss ± SE,\nselection (nats)", "Δ loss ± SE,\nreport (nats)", "Δ perplexity,\nreport (%)")
    place = {"ratio": "Q_r", "bits": "bits", "megabytes": "MB"}[record.axis]
    kept = (place, "95 % interval", "bits per\nweight")
    columns = (*texts("budget"), *numbers(*kept, *losses))
    return table(columns, ((reached.budget, *_reached(record, reached)) for reached in record.reached))


def verdicts(record: SearchResult) -> list[str]:
    """Why each budget reaches that."""
    return [f"{r.budget}: {r.verdict}" for r in record.reached]


def sizes(record: SearchResult) -> str:
    """What megabytes are of."""
    return f"MB: weights of all sites, and keys and values of {count(record.context, 'token')}"


def _reached(record: SearchResult, reached: Reached) -> tuple[str, ...]:
    """What a budget reaches, behind its name."""
    if reached.trial < 0:
        return ("none", "", "", "", "", "")
    trial, report = record.trials[reached.trial], record.on_report(reached)
    return (
        fixed(abs(trial.position(record.axis)), 3),
        interval_words(reached.low, reached.high),
        fixed(trial.bits, 2),
        with_error(trial.damage),
        with_error(report),
        "" if math.isnan(report.nats) else perplexity_change(report.nats),
    )


def _curve(record: SearchResult) -> DataTable:
    trials = pareto(record.trials, record.axis)
    step = max(1, -(-len(trials) // ROWS))
    shown = [t for i, t in enumerate(trials) if i % step == 0 or i == len(trials) - 1]
    digits = decimals([t.damage.nats for t in shown if not t.failure])
    predicted = f"predicted\n({record.metric or 'none'})"
    heads = ("MB", "Q_r", "bits per\nweight", predicted, "Δ loss\n(nats)", "± SE", "Δ perplexity\n(%)")
    with_caches = record.axis == "megabytes"
    rows = (_trial(trial, digits, with_caches=with_caches) for trial in shown)
    return table((*texts("trial"), *numbers(*heads)), rows).used()


def _trial(trial: SearchTrial, digits: int, *, with_caches: bool) -> tuple[str, ...]:
    size = fixed(trial.megabytes, 3) if with_caches else ""
    predicted = "" if math.isnan(trial.predicted) else fixed(trial.predicted, digits)
    losses = (*loss_and_error(trial.damage, digits), perplexity_change(trial.damage.nats))
    return trial.label, size, fixed(trial.ratio, 3), fixed(trial.bits, 2), predicted, *losses


def adding_up(record: SearchResult) -> Iterator[str]:
    """How the plans' losses compare with the sums of their sites' predictions."""
    fit = record.correction
    if fit.pairs:
        middle = math.sqrt(fit.smallest * fit.largest)
        power = f" (to the power {fixed(fit.power, 2)})" if fit.power != 1 else ""
        left = "" if math.isnan(fit.residual) else f"; {fixed(100 * fit.residual, 0)} % are left unexplained"
        times = fixed(fit.apply(middle) / middle, 2)
        yield f"Damages add up to {times} times their sum{power} over {count(fit.pairs, 'plan')}{left}"


def cost(record: SearchResult) -> str:
    """What finding out cost."""
    total = record.cost.pricing + record.cost.measuring
    return (
        f"{count(len(record.trials), 'plan')} tried; {total:,} block × token forwards "
        f"({record.cost.pricing:,} for prices, {record.cost.measuring:,} for measurements)"
    )
