"""What is lost: float, naive and planned side by side, and the measured plans that protect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.page.figures.intervals import Arm, intervals
from qarat.surfaces.tables.choices import protected_shares
from qarat.surfaces.tables.wording import count, decimals, fixed, perplexity_change
from qarat.values.plans import Plan
from qarat.values.records.prices import Protection
from qarat.values.records.scores import Divergence, Evaluation, paired_difference


class Remedy(NamedTuple):
    """One thing done against the loss.

    Attributes:
        label: In words.
        measured: On the report tokens; None where it was not.
        predicted: Nats per token; NaN where nothing was.
        group: Decides its colour.
    """

    label: str
    measured: Evaluation | None
    predicted: float = math.nan
    group: str = ""


def outcome(remedies: Sequence[Remedy], base: Evaluation, budget: tuple[float, str] | None = None) -> Figure:
    """What each remedy leaves of the loss over float, with intervals.

    Args:
        remedies: Measured on the tokens of ``base``, or predicted alone.
        base: Float's.
        budget: In nats per token, and its spelling.

    Raises:
        UserError: They are of other models or tokens.
    """
    arms = [Arm(base.label, 0.0, group=base.label, details=(fixed(base.perplexity, 2), "", ""))]
    clusters = 0
    for label, evaluation, predicted, group in remedies:
        expected = "" if math.isnan(predicted) else perplexity_change(predicted)
        if evaluation is None:
            arms.append(Arm(label, math.nan, group=group, details=("not measured", "", expected)))
            continue
        lost = paired_difference(evaluation, base)
        clusters = lost.clusters
        details = (fixed(evaluation.perplexity, 2), perplexity_change(lost.nats), expected)
        arms.append(Arm(label, lost.nats, *lost.interval, group, details))
    return intervals(
        "outcome",
        "What each remedy leaves of the loss",
        f"Loss over {base.label} on {count(len(base.nats), 'window')} of text that neither calibration nor planning "
        f"has seen. Bars: 95 %, paired by window, over {count(clusters, 'source')}.",
        arms,
        unit="nats per token",
        reference=0.0,
        limit=budget,
        groups=tuple(dict.fromkeys(("plan", "naive", base.label, *(arm.group for arm in arms)))),
        columns=("perplexity", "perplexity change (%)", "predicted change (%)"),
        noun="remedy",
        told=True,
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
        [Series("measured plans", tuple(dots), line=False, named=True)],
        Axis("protected (% of the parameters)", digits=2, zero=True),
        Axis("loss over float (nats per token)", digits=digits, zero=True),
        noun="plan",
        limits=[(sweep.budget_nats, f"budget {sweep.budget}")],
    )


def divergence_along(records: Sequence[Divergence]) -> Figure:
    """How far from float's the predictions are, by how much of a window had been read.

    Args:
        records: Of one token set; the plan's, blue as everywhere, is the last.
    """
    return curve(
        "divergence",
        "Divergence from float along a window",
        "Mean over the tokens that are predicted behind so many; 0 is the float model itself.",
        [
            Series(r.label, tuple(Dot(float(b.last), b.divergence) for b in r.positions if b.divergence > 0))
            for r in reversed(records)
        ],
        Axis("tokens read, at most", log=True, digits=0),
        Axis("KL from float (nats per token)", log=True, zero=True),
    )
