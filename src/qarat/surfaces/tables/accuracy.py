"""Zero-shot accuracy as tables, alone and against the first model's."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from qarat.stages.measure.tasks.local_tasks import LOCAL_TASKS, UNPUBLISHED
from qarat.surfaces.tables.layout import cells, count, fixed, label, number, table, words
from qarat.values.records.comparison import score_difference
from qarat.values.records.origin import same_origin
from qarat.values.records.scores import ZeroShot


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
            change, error = score_difference(score, base)
            difference = (fixed(change, 4, sign=True), fixed(error, 4)) if record is not first else ("", "")
            asked = score.questions or len(score.items)
            questions = f"{asked:,}" if asked else ""
            numbers = fixed(score.value, 4), fixed(score.standard_error, 4)
            cells(out, *key, record.label, questions, *numbers, *difference)
    tasks = count(len({task for task, _ in theirs[0]}), "task")
    lines = [f"{tasks}, {first.provenance.convention}, model {first.provenance.model[:12]}"]
    lines += [UNPUBLISHED] if any(task in LOCAL_TASKS for task, _ in theirs[0]) else []
    return Group(out, *(words(line, "dim") for line in lines))
