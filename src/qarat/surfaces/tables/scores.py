"""What a plan cost, as tables: evaluations, alone and against float's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.ground.errors import UserError
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
from qarat.values.fingerprints import spellings_of
from qarat.values.records.scores import Evaluation, paired_difference


def arm_words(evaluation: Evaluation) -> str:
    """An evaluation's label, with what was done to the model before it was quantized: ``naive, with hadamard``."""
    transforms = spellings_of(evaluation.provenance.model)
    return f"{evaluation.label}, with {', '.join(transforms)}" if transforms else evaluation.label


def transform_words(evaluations: Sequence[Evaluation]) -> str:
    """What several evaluations of one transformed model do not show; empty where there are none."""
    transformed = [e for e in evaluations if spellings_of(e.provenance.model)]
    if len(transformed) < 2 or len({e.provenance.model for e in transformed}) > 1:
        return ""
    labels = ", ".join(e.label for e in transformed[:-1]) + f" and {transformed[-1].label}"
    done = ", ".join(spellings_of(transformed[0].provenance.model))
    return f"{labels} alike are of the model with {done}; what that buys is seen beside a run without it"


def show_evaluation(record: Evaluation) -> RenderableType:
    """One evaluation on its own."""
    return Group(
        title(
            record.label,
            record.provenance.model,
            f"perplexity {fixed(record.perplexity, 2)}",
            f"loss {fixed(record.loss, 4)} nats per {record.unit}",
        ),
        words(_tokens(record), "dim"),
    )


def compare(evaluations: Sequence[Evaluation]) -> RenderableType:
    """Evaluations of the same tokens against the first of them, which is float's.

    Raises:
        UserError: If they were measured on other models or tokens, or there are none.
    """
    if not evaluations:
        raise UserError("there are no evaluations to compare")
    first, *others = evaluations
    differences = [paired_difference(e, first) for e in others]
    digits = decimals([bound for d in differences for bound in (d.nats, *d.interval)])
    out = table(
        label(""),
        number("perplexity"),
        number("Δ loss\n(nats)"),
        number("± SE\n(nats)"),
        number("95 % interval\n(nats)"),
        number("Δ perplexity\n(%)"),
    )
    cells(out, arm_words(first), fixed(first.perplexity, 2), "", "", "", "")
    for evaluation, difference in zip(others, differences, strict=True):
        low, high = (fixed(bound, digits, sign=True) for bound in difference.interval)
        cells(
            out,
            arm_words(evaluation),
            fixed(evaluation.perplexity, 2),
            fixed(difference.nats, digits, sign=True),
            fixed(difference.standard_error, digits),
            "n/a" if math.isnan(difference.standard_error) else f"{low} to {high}",
            perplexity_change(difference.nats),
        )
    lines = [_tokens(first)]
    if others:
        clusters = differences[0].clusters
        lines.append(
            f"Δ: nats per {first.unit} over {first.label}, paired by window; errors over {count(clusters, 'cluster')}"
        )
    if said := transform_words(evaluations):
        lines.append(said)
    if others and differences[0].clusters == 1:
        lines.append("one source alone gives no standard error")
    return Group(out, Text(), *(words(line, "dim") for line in lines))


def _tokens(evaluation: Evaluation) -> str:
    sources = count(len(set(evaluation.sources)), "source")
    windows = count(len(evaluation.nats), "window")
    predicted = f"{sum(evaluation.predicted):,} predicted {evaluation.unit}s"
    return f"{windows} of {sources}, {predicted}, {evaluation.provenance.convention}"
