"""Zero-shot accuracy as tables, alone and against the first model's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rich.console import Group, RenderableType

from qarat.records import TaskScore, ZeroShot, same_origin
from qarat.report.layout import cells, count, fixed, label, number, table, words

__all__ = ["compare_accuracy", "show_accuracy"]


def show_accuracy(record: ZeroShot) -> RenderableType:
    """One model's scores."""
    return compare_accuracy([record])


def compare_accuracy(records: Sequence[ZeroShot]) -> RenderableType:
    """Scores of the same questions; differences are to the first model's, paired question by question.

    Raises:
        UserError: If they answered other questions, or are of other models.
    """
    first, *others = records
    for other in others:
        same_origin(first.provenance, other.provenance, f"{first.label} and {other.label}")
    out = table(
        label("task"), label("metric"), label("model"), number("questions"), number("score"), number("± SE"),
        number("Δ"), number("± SE\nof Δ"),
    )  # fmt: skip
    theirs = [{(s.task, s.metric): s for s in record.scores} for record in records]
    for key, base in theirs[0].items():
        for record, scores in zip(records, theirs, strict=True):
            score = scores[key]
            difference = _difference(score, base) if record is not first else ("", "")
            questions = f"{len(score.items):,}" if score.items else ""
            numbers = fixed(score.value, 4), fixed(score.standard_error, 4)
            cells(out, *key, record.label, questions, *numbers, *difference)
    tasks = count(len({task for task, _ in theirs[0]}), "task")
    return Group(out, words(f"{tasks}, {first.provenance.convention}, model {first.provenance.model[:12]}", "dim"))


def _difference(score: TaskScore, base: TaskScore) -> tuple[str, str]:
    """The paired difference and its standard error over questions."""
    change = fixed(score.value - base.value, 4, sign=True)
    if len(score.items) < 2 or len(score.items) != len(base.items):
        return change, ""
    changes = [x - y for x, y in zip(score.items, base.items, strict=True)]
    return change, fixed(statistics.stdev(changes) / math.sqrt(len(changes)), 4)
