"""What is lost: float, naive and planned side by side, and the measured plans that protect."""

from __future__ import annotations

from collections.abc import Sequence

from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.page.figures.intervals import Arm, intervals
from qarat.surfaces.tables.choices import protected_shares
from qarat.surfaces.tables.scores import arm_label, shared_transforms
from qarat.surfaces.tables.wording import count, decimals, fixed, perplexity_change
from qarat.values.plans import Plan
from qarat.values.records.prices import Protection
from qarat.values.records.scores import Evaluation, paired_difference


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


def recovery(sweep: Protection, plan: Plan) -> Figure:
    """Loss over float against the share of the parameters that is protected, with the budget.

    Args:
        sweep: The measured plans.
        plan: Of the same sites.
    """
    digits = decimals([t.damage.nats for t in sweep.trials])
    dots = sorted(
        (
            Dot(share, t.damage.nats, y_range=t.damage.interval, label=t.label)
            for share, t in zip(protected_shares(sweep, plan), sweep.trials, strict=True)
        ),
        key=lambda dot: dot.x,
    )
    caption = (
        f"{count(len(dots), 'plan')} measured; with nothing protected the loss is "
        f"{fixed(sweep.trials[0].damage.nats, digits)} nats. Bars: 95 %, paired with float on the selection tokens. "
        f"Chosen by {sweep.order}."
    )
    return curve(
        "recovery",
        "Loss with more and more protected",
        caption,
        [Series("measured plans", tuple(dots))],
        Axis("protected (% of the parameters)", digits=2, zero=True),
        Axis("loss over float (nats per token)", digits=digits, zero=True),
        noun="plan",
        limit=(sweep.budget_nats, f"budget {sweep.budget}"),
    )
