"""Ratio studies: random beside predicted search, what budgets reach, the ablations; and sweeps of a family."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from qarat.surfaces.tables.data import DataTable, Parts, bold, dim, numbers, table, texts, title
from qarat.surfaces.tables.wording import GAP, count, decimals, fixed, perplexity_change, with_error
from qarat.values.records.law_data import spell_value
from qarat.values.records.ratios import FamilyPoint, FamilySweep, RatioArm, RatioPlan, RatioReach, RatioStudy
from qarat.values.records.search import interval_words

_HIGHEST = "The highest Q_r within a budget, with its 95 % interval"


def show_ratio_study(record: RatioStudy) -> Parts:
    """A study: each granularity and block size, what budgets reach, whether finer reaches further, the ablations."""
    facts = (f"Q_r by {record.basis}", f"{record.trials} random plans a ratio", f"predicted by {record.metric}")
    yield title("ratio study", record.provenance.model, *facts)
    for arm in record.arms:
        yield from ("", *_arm(record, arm))
    budgets = _budgets(record)
    if budgets.rows:
        yield from ("", bold(_HIGHEST), budgets, *_further(record))
    if record.best_of:
        yield from ("", bold(f"The best of so many random plans, {record.ablated}"), _best_of(record))
    if record.windows:
        yield from ("", bold(f"What so many report windows say of the best, {record.ablated}"), _windows(record))


def _arm(record: RatioStudy, arm: RatioArm) -> Parts:
    yield bold(f"{arm.granularity}-wise, block {arm.block}: {arm.low}, {count(arm.units, 'unit')}")
    random = ("random\nQ_r", f"best of {record.trials}: Δ loss\n± SE, report")
    predicted = ("predicted\nQ_r", "Δ loss\n± SE, report", "predicted - random\n(nats, paired ± SE)")
    rows = ((fixed(p.ratio, 3), *_plan(p.random), *_plan(p.predicted), with_error(p.more) or "n/a") for p in arm.points)
    yield table(numbers("Q_r\nasked", *random, *predicted), rows)
    of_random, of_predicted = (cost.pricing + cost.measuring for cost in (arm.random_cost, arm.predicted_cost))
    yield dim(
        f"block × token forwards: random {of_random:,}, predicted {of_predicted:,} with the budgets below "
        f"(1/{of_random / of_predicted:.1f})"
    )


def _plan(plan: RatioPlan) -> tuple[str, str]:
    return ("none", "") if math.isnan(plan.ratio) else (fixed(plan.ratio, 3), with_error(plan.report))


def _budgets(record: RatioStudy) -> DataTable:
    places = (*texts("budget"), *numbers("block"), *texts("decided", wrap=False))
    budgets = max((len(arm.predicted_reach) for arm in record.arms), default=0)
    rows = (
        (
            predicted.budget,
            str(arm.block),
            f"by {arm.granularity}",
            _reach(random),
            _reach(predicted),
            _change(predicted),
        )
        for i in range(budgets)
        for arm in record.arms
        for random, predicted in [(arm.random_reach[i], arm.predicted_reach[i])]
    )
    return table((*places, *numbers("random", "predicted", "predicted: Δ perplexity,\nreport (%)")), rows)


def _change(reach: RatioReach) -> str:
    nats = reach.plan.report.nats
    return "" if math.isnan(nats) else perplexity_change(nats)


def _reach(reach: RatioReach) -> str:
    ratio = _ratio(reach)
    return ratio if ratio == "none" else f"{ratio} ({interval_words(reach.low, reach.high)})"


def _ratio(reach: RatioReach) -> str:
    return "none" if math.isnan(reach.plan.ratio) else fixed(reach.plan.ratio, 3)


def _further(record: RatioStudy) -> Iterator[str]:
    """Whether matmul-wise reaches further than layer-wise, in a line for each block size."""
    arms = {(arm.block, arm.granularity): arm for arm in record.arms}
    for block in dict.fromkeys(arm.block for arm in record.arms):
        fine, coarse = arms.get((block, "matmul")), arms.get((block, "layer"))
        if fine is not None and coarse is not None:
            yield f"block {block}: {_compare(fine.predicted_reach, coarse.predicted_reach)}"


def _compare(fine: Sequence[RatioReach], coarse: Sequence[RatioReach]) -> str:
    verdicts = [_verdict(a, b) for a, b in zip(fine, coarse, strict=True)]
    further = sum(verdict.startswith("further") for verdict in verdicts)
    details = "; ".join(
        f"{a.budget} {_ratio(a)} against {_ratio(b)}, {verdict}"
        for a, b, verdict in zip(fine, coarse, verdicts, strict=True)
    )
    return f"matmul-wise reaches further than layer-wise at {further} of {count(len(verdicts), 'budget')}: {details}"


def _verdict(fine: RatioReach, coarse: RatioReach) -> str:
    # A budget that no plan keeps is kept by nothing low.
    a, b = (0.0 if math.isnan(r.plan.ratio) else r.plan.ratio for r in (fine, coarse))
    if a == b:
        return "equal"
    word = "further" if a > b else "less far"
    apart = fine.low > coarse.high or fine.high < coarse.low
    return word if apart else f"{word}, within the intervals"


def _best_of(record: RatioStudy) -> DataTable:
    digits = decimals([x.expected for x in record.best_of])
    return table(
        numbers(
            "plans", "best of the first\n(nats, selection)", "Δ perplexity\n(%)", "mean best of\nso many of all",
            "standard\ndeviation",
        ),
        (
            (
                str(x.trials),
                fixed(x.best, digits),
                perplexity_change(x.best),
                fixed(x.expected, digits),
                fixed(x.spread, digits),
            )
            for x in record.best_of
        ),
    )  # fmt: skip


def _windows(record: RatioStudy) -> DataTable:
    losses = numbers("Δ loss ± SE\n(nats)", "Δ perplexity\n(%)")
    rows = (
        (
            str(x.windows),
            *(fixed(math.exp(min(loss, 700)), 3) for loss in (x.loss, x.loss + x.more.nats)),
            with_error(x.more),
            perplexity_change(x.more.nats),
        )
        for x in record.windows
    )
    return table((*numbers("windows", "float\nperplexity", "perplexity\nof the plan"), *losses), rows)


def show_family_sweep(record: FamilySweep) -> Parts:
    """A sweep: what every plan loses on the report tokens, then what budgets reach, then what failed."""
    sizes = {p.model: spell_value("size", p.size) for p in record.points}
    yield bold("sweep", f"{GAP}{record.family}{GAP}{record.planning}{GAP}Q_r by {record.basis}")
    yield f"N, parameters of all sites: {', '.join(f'{model} {size}' for model, size in sizes.items())}"
    heads = numbers("Q_b", "Q_r", "bits per\nweight", "Δ loss ± SE\n(nats)", "Δ perplexity\n(%)")
    columns = (*texts("model"), *texts("low", wrap=False), *heads)
    yield from ("", table(columns, (row for point in record.points for row in _plans(point))))
    reached = [point for point in record.points if point.reached]
    if reached:
        budgets = numbers("Q_b", *(reach.budget for reach in reached[0].reached))
        rows = ((*_place(point), *map(_reach, point.reached)) for point in reached)
        yield from ("", bold(_HIGHEST), table((*texts("model", "low"), *budgets), rows))
    yield from (f"failed: {p.model}, {p.low}: {p.failure}" for p in record.points if p.failure)


def _plans(point: FamilyPoint) -> Iterator[tuple[str, ...]]:
    """A row for each share that was asked for."""
    for ratio, plan in zip(point.ratios, point.plans, strict=True):
        if math.isnan(plan.ratio):
            yield *_place(point), f"{ratio:g}?", "", "none", ""
        else:
            loss = (with_error(plan.report), perplexity_change(plan.report.nats))
            yield *_place(point), fixed(plan.ratio, 3), fixed(plan.bits, 2), *loss


def _place(point: FamilyPoint) -> tuple[str, str, str]:
    return point.model, point.format, f"{point.block:.4g}"
