"""What is lost: float, naive and planned side by side, with the first k candidates protected, and site by site."""

from __future__ import annotations

from collections.abc import Sequence

from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.page.figures.intervals import Arm, intervals
from qarat.surfaces.tables.choices import added
from qarat.surfaces.tables.scores import arm_label, shared_transforms
from qarat.surfaces.tables.wording import count, decimals, fixed, perplexity_change
from qarat.values.records.origin import Difference
from qarat.values.records.prices import Menu, Protection
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.sites import short_name


def outcome(evaluations: Sequence[Evaluation], budget: tuple[float, str] | None = None) -> Figure:
    """Loss over the first evaluation's, with intervals.

    Args:
        evaluations: Of the same tokens, float's first.
        budget: In nats per token, and its spelling.

    Raises:
        UserError: They are of other models or tokens.
    """
    first, *others = evaluations
    arms = [Arm(arm_label(first), 0.0, group=first.label, details=(fixed(first.perplexity, 2), ""))]
    clusters = 0
    for evaluation in others:
        difference = paired_difference(evaluation, first)
        clusters = difference.clusters
        details = (fixed(evaluation.perplexity, 2), perplexity_change(difference.nats))
        arms.append(Arm(arm_label(evaluation), difference.nats, *difference.interval, evaluation.label, details))
    windows = count(len(first.nats), "window")
    caption = (
        f"Loss over {first.label} on {windows} of text that neither calibration nor planning has seen. Bars: 95 %, "
        f"paired by window, over {count(clusters, 'source')}."
    )
    if note := shared_transforms(evaluations):
        caption += f" {note[0].upper()}{note[1:]}."
    return intervals(
        "outcome",
        "Loss over float",
        caption,
        arms,
        unit="nats per token",
        reference=0.0,
        limit=budget,
        groups=("plan", "naive", "float", *(e.label for e in evaluations if e.label not in ("plan", "naive", "float"))),
        columns=("perplexity", "perplexity change (%)"),
    )


def recovery(sweep: Protection) -> Figure:
    """Loss over float against the number of protected candidates, with the budget.

    Args:
        sweep: Trial k protects the first k candidates.
    """
    last = len(sweep.trials) - 1
    dots = tuple(
        Dot(k, t.damage.nats, y_range=t.damage.interval, label=label or "nothing protected")
        for k, (t, label) in enumerate(added(sweep))
    )
    naive, final = sweep.trials[0].damage.nats, sweep.trials[-1].damage.nats
    caption = (
        f"k = 0 protects nothing and loses {fixed(naive, 4)} nats; k = {last} loses {fixed(final, 4)}. Bars: 95 %, "
        f"paired with float on the selection tokens. Candidates in the order of {sweep.order}."
    )
    return curve(
        "recovery",
        "Loss with the first k candidates protected",
        caption,
        [Series("this plan's order", dots)],
        Axis("protected candidates, k", ticks=tuple(range(0, last + 1, max(1, last // 12))), digits=0),
        Axis("loss over float (nats per token)", digits=4, zero=True),
        noun="adds",
        limit=(sweep.budget_nats, f"budget {sweep.budget}"),
    )


def damage(menu: Menu, sweep: Protection, low: str) -> Figure:
    """What each site alone was predicted to cost, and what it cost.

    Args:
        menu: The predictions.
        sweep: Measured some sites alone.
        low: Spelling of the scheme they had.
    """
    priced = {e.site: e for e in menu.entries if e.scheme == low}
    dots: list[Dot] = []
    for trial in sweep.alone:
        if entry := priced.get(trial.sites[0]):
            predicted = Difference(entry.damage, entry.standard_error, 0).interval
            dots.append(Dot(entry.damage, trial.damage.nats, predicted, trial.damage.interval, short_name(entry.site)))
    digits = decimals([v for d in dots for v in (d.x, d.y)])
    hidden = sum(d.x <= 0 or d.y <= 0 for d in dots)
    caption = (
        f"On the broken line the prediction ({menu.metric}) is right; above it the site costs more than predicted. "
        "Bars: 95 %, cut where they reach zero."
    )
    if hidden:
        caption += f" {count(hidden, 'site')} at or below zero: in the table alone."
    return curve(
        "damage",
        "Single sites in the low scheme, all others in float",
        caption,
        [Series("sites", tuple(dots), line=False)],
        Axis("predicted (nats per token)", log=True, digits=digits),
        Axis("measured (nats per token)", log=True, digits=digits),
        noun="site",
        diagonal=True,
        labelled=True,
    )
