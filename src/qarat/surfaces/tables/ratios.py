"""Studies as tables: random beside predicted search, what budgets reach, the ablations; and sweeps of a family."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
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
    visible,
    words,
)
from qarat.surfaces.tables.search import with_error
from qarat.values.records.family import FamilyPoint, FamilySweep
from qarat.values.records.law_data import spell_value
from qarat.values.records.ratios import RatioArm, RatioPlan, RatioReach, RatioStudy
from qarat.values.records.search import SearchCost, interval_words


def show_ratio_study(record: RatioStudy) -> RenderableType:
    """A study: each granularity and block size, what budgets reach, whether finer reaches further, the ablations."""
    facts = (f"Q_r by {record.basis}", f"{record.trials} random plans a ratio", f"predicted by {record.metric}")
    parts: list[RenderableType] = [title("ratio study", record.provenance.model, *facts)]
    for arm in record.arms:
        parts += [Text(), *_show_arm(record, arm)]
    budgets = _budgets(record)
    if budgets.row_count:
        parts += [Text(), words("The highest Q_r within a budget, with its 95 % interval", "bold"), budgets]
        parts += [words(line) for line in _further(record)]
    if record.best_of:
        parts += [Text(), words(f"The best of so many random plans, {record.ablated}", "bold"), _best_of(record)]
    if record.windows:
        parts += [Text(), words(f"What so many report windows say of the best, {record.ablated}", "bold")]
        parts.append(_windows(record))
    return Group(*parts)


def _show_arm(record: RatioStudy, arm: RatioArm) -> Iterable[RenderableType]:
    yield words(f"{arm.granularity}-wise, block {arm.block}: {arm.low}, {count(arm.units, 'unit')}", "bold")
    out = table(
        number("Q_r\nasked"),
        number("random\nQ_r"),
        number(f"best of {record.trials}:\nΔ loss, report"),
        number("predicted\nQ_r"),
        number("\nΔ loss, report"),
        number("predicted - random\n(nats, paired ± SE)"),
    )
    for point in arm.points:
        random, predicted = _plan(point.random), _plan(point.predicted)
        cells(out, fixed(point.asked, 3), *random, *predicted, with_error(point.more) or "n/a")
    yield out
    spent = [_total(cost) for cost in (arm.random_cost, arm.predicted_cost)]
    yield words(
        f"block × token forwards: random {spent[0]:,}, predicted {spent[1]:,} with the budgets below "
        f"(1/{spent[0] / spent[1]:.1f})",
        "dim",
    )


def _plan(plan: RatioPlan) -> tuple[str, str]:
    return ("none", "") if math.isnan(plan.ratio) else (fixed(plan.ratio, 3), with_error(plan.report))


def _total(cost: SearchCost) -> int:
    return cost.pricing + cost.measuring


def _budgets(record: RatioStudy) -> Table:
    out = table(
        label("budget"),
        number("block"),
        label("decided", wrap=False),
        number("random"),
        number("predicted"),
        number("predicted: Δ perplexity,\nreport (%)"),
    )
    for i in range(max((len(arm.predicted_reach) for arm in record.arms), default=0)):
        for arm in record.arms:
            random, predicted = arm.random_reach[i], arm.predicted_reach[i]
            change = predicted.plan.report.nats
            cells(
                out,
                predicted.budget,
                str(arm.block),
                f"by {arm.granularity}",
                _reach(random),
                _reach(predicted),
                "" if math.isnan(change) else perplexity_change(change),
            )
    return out


def _reach(reach: RatioReach) -> str:
    if math.isnan(reach.plan.ratio):
        return "none"
    return f"{fixed(reach.plan.ratio, 3)} ({interval_words(reach.low, reach.high)})"


def _further(record: RatioStudy) -> Iterable[str]:
    """Whether matmul-wise reaches further than layer-wise, in a line for each block size."""
    arms = {(arm.block, arm.granularity): arm for arm in record.arms}
    for block in dict.fromkeys(arm.block for arm in record.arms):
        fine, coarse = arms.get((block, "matmul")), arms.get((block, "layer"))
        if fine is not None and coarse is not None:
            yield f"block {block}: {_compare(fine.predicted_reach, coarse.predicted_reach)}"


def _compare(fine: Sequence[RatioReach], coarse: Sequence[RatioReach]) -> str:
    verdicts = [_verdict(a, b) for a, b in zip(fine, coarse, strict=True)]
    further = sum(verdict.startswith("further") for verdict in verdicts)
    listed = "; ".join(
        f"{a.budget} {_ratio(a)} against {_ratio(b)}, {verdict}"
        for a, b, verdict in zip(fine, coarse, verdicts, strict=True)
    )
    return f"matmul-wise reaches further than layer-wise at {further} of {count(len(verdicts), 'budget')}: {listed}"


def _ratio(reach: RatioReach) -> str:
    return "none" if math.isnan(reach.plan.ratio) else fixed(reach.plan.ratio, 3)


def _verdict(fine: RatioReach, coarse: RatioReach) -> str:
    # A budget that no plan keeps is kept by nothing low.
    a, b = (0.0 if math.isnan(r.plan.ratio) else r.plan.ratio for r in (fine, coarse))
    if a == b:
        return "equal"
    word = "further" if a > b else "less far"
    apart = fine.low > coarse.high or fine.high < coarse.low
    return word if apart else f"{word}, within the intervals"


def _best_of(record: RatioStudy) -> RenderableType:
    out = table(
        number("plans"),
        number("best of the first\n(nats, selection)"),
        number("Δ perplexity\n(%)"),
        number("mean best of\nso many of all"),
        number("standard\ndeviation"),
    )
    digits = decimals([x.expected for x in record.best_of])
    for x in record.best_of:
        numbers = (fixed(x.found, digits), perplexity_change(x.found), fixed(x.expected, digits))
        cells(out, str(x.trials), *numbers, fixed(x.spread, digits))
    return out


def _windows(record: RatioStudy) -> RenderableType:
    out = table(
        number("windows"), number("float\nperplexity"), number("perplexity\nof the plan"),
        number("Δ loss ± SE\n(nats)"), number("Δ perplexity\n(%)"),
    )  # fmt: skip
    for x in record.windows:
        perplexities = [math.exp(min(loss, 700)) for loss in (x.loss, x.loss + x.more.nats)]
        cells(
            out,
            str(x.windows),
            *(fixed(value, 3) for value in perplexities),
            with_error(x.more),
            perplexity_change(x.more.nats),
        )
    return out


def show_sweep_of_family(record: FamilySweep) -> RenderableType:
    """A sweep: what every plan loses on the report tokens, then what budgets reach, then what failed."""
    out = table(
        label("model"), label("low", wrap=False), number("Q_b"), number("Q_r"),
        number("bits per\nweight"), number("Δ loss ± SE\n(nats)"), number("Δ perplexity\n(%)"),
    )  # fmt: skip
    for point in record.points:
        for asked, plan in zip(point.asked, point.plans, strict=True):
            if math.isnan(plan.ratio):
                cells(out, *_place(point), f"{asked:g}?", "", "none", "")
                continue
            loss = (with_error(plan.report), perplexity_change(plan.report.nats))
            cells(out, *_place(point), fixed(plan.ratio, 3), fixed(plan.bits, 2), *loss)
    sizes = {p.model: spell_value("size", p.size) for p in record.points}
    parts: list[RenderableType] = [
        Text.assemble(("sweep", "bold"), f"  {visible(record.family)}  {record.planning}  Q_r by {record.basis}"),
        words(f"N, parameters of all sites: {', '.join(f'{model} {size}' for model, size in sizes.items())}"),
        Text(),
        out,
    ]
    if any(point.reached for point in record.points):
        parts += [Text(), words("The highest Q_r within a budget, with its 95 % interval", "bold"), _reached(record)]
    failed = [point for point in record.points if point.failure]
    parts += [words(f"failed: {p.model}, {p.low}: {p.failure}") for p in failed]
    return Group(*parts)


def _place(point: FamilyPoint) -> tuple[str, str, str]:
    return point.model, point.format, f"{point.block:.4g}"


def _reached(record: FamilySweep) -> RenderableType:
    budgets = next(point.reached for point in record.points if point.reached)
    out = table(
        label("model"),
        label("low"),
        number("Q_b"),
        *(number(reach.budget) for reach in budgets),
    )
    for point in record.points:
        if point.reached:
            cells(out, *_place(point), *map(_reach, point.reached))
    return out
