"""Several models on the same tokens or questions, as a table of paired differences."""

from __future__ import annotations

import math

from qarat.surfaces.tables.data import Parts, dim, numbers, table, texts
from qarat.surfaces.tables.scores import local_note
from qarat.surfaces.tables.wording import count, decimals, fixed, interval, perplexity_change
from qarat.values.records.comparison import Comparison, Contrast


def show_comparison(record: Comparison) -> Parts:
    """Every model against the first, measure by measure."""
    measures = list(dict.fromkeys(c.measure for c in record.contrasts))
    values = numbers("value", f"Δ to\n{record.compared[0].label}", "95 % interval", "Δ perplexity\n(%)")
    rows: list[tuple[str, ...]] = []
    for measure in measures:
        contrasts = [c for c in record.contrasts if c.measure == measure]
        name = measure if len(measures) > 1 else ""
        rows.append((name, contrasts[0].base, fixed(contrasts[0].base_value, 4), "", "", "", ""))
        rows += [(name, *_contrast(record, c)) for c in contrasts]
    shown = table((*texts("measure", ""), *values, *texts("verdict")), rows)
    yield shown.used()
    yield ""
    yield from map(dim, _lines(record))


def _contrast(record: Comparison, c: Contrast) -> tuple[str, ...]:
    """One model against the first: what stands in its row behind the measure."""
    digits = decimals([bound for other in record.contrasts for bound in (other.difference, *other.interval)])
    in_nats = record.kind == "loss" and record.unit == "token"
    change = perplexity_change(c.difference) if in_nats else ""
    difference = fixed(c.difference, digits, sign=True)
    return c.label, fixed(c.value, 4), difference, interval(c.interval, digits), change, c.verdict


def _lines(record: Comparison) -> list[str]:
    """What was compared, on what, and what the words mean."""
    noun = "question" if record.kind == "accuracy" else "window"
    pairs = max((c.pairs for c in record.contrasts), default=0)
    unit = {"loss": f"nats per {record.unit}", "divergence": "nats per token, and shares"}.get(record.kind, "shares")
    lines = [
        record.what,
        f"{unit}, paired by {noun}, {count(pairs, noun)} at most, {record.convention}, {record.dtype}",
        "equal within error: the 95 % interval covers 0",
    ]
    if any(math.isnan(c.standard_error) for c in record.contrasts):
        lines.append("n/a: one source alone, or a score without one for each question, gives no error")
    return lines + local_note(c.measure.split(" ")[0] for c in record.contrasts)
