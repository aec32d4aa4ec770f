"""Several models on the same tokens or questions, as a table of paired differences."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.stages.measure.tasks.local_tasks import LOCAL_TASKS, UNPUBLISHED
from qarat.surfaces.tables.layout import cells, count, decimals, fixed, label, number, perplexity_change, table, words
from qarat.values.records.comparison import Comparison, Contrast


def show_comparison(record: Comparison) -> RenderableType:
    """Every model against the first, measure by measure."""
    contrasts = record.contrasts
    digits = decimals([bound for c in contrasts for bound in (c.difference, *c.interval)])
    several = len({c.measure for c in contrasts}) > 1
    columns = [label("measure")] if several else []
    columns += [label(""), number("value"), number(f"Δ to\n{record.compared[0].label}"), number("95 % interval")]
    columns += [number("Δ perplexity\n(%)")] if record.kind == "loss" and record.unit == "token" else []
    out = table(*columns, label("so it is"))
    seen = ""
    for c in sorted(contrasts, key=lambda c: _order(record, c)):
        name = [c.measure] if several else []
        if c.measure != seen:
            cells(out, *name, c.base, fixed(c.base_value, 4))
            seen = c.measure
        low, high = (fixed(bound, digits, sign=True) for bound in c.interval)
        interval = "n/a" if math.isnan(c.standard_error) else f"{low} to {high}"
        change = [perplexity_change(c.difference)] if len(columns) == 5 and record.kind == "loss" else []
        row = (*name, c.label, fixed(c.value, 4), fixed(c.difference, digits, sign=True), interval, *change)
        cells(out, *row, c.verdict)
    return Group(out, Text(), *(words(line, "dim") for line in _lines(record)))


def _order(record: Comparison, contrast: Contrast) -> int:
    """Measures in the order of the first model's contrasts."""
    return [c.measure for c in record.contrasts].index(contrast.measure)


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
    if any(c.measure.split(" ")[0] in LOCAL_TASKS for c in record.contrasts):
        lines.append(UNPUBLISHED)
    return lines
