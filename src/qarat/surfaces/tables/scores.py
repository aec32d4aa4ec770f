"""What a plan cost: losses, divergence from float, accuracy, and continuations; alone and beside the first model's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from qarat.ground.errors import UserError
from qarat.stages.measure.tasks.local_tasks import LOCAL_TASKS, UNPUBLISHED
from qarat.surfaces.tables.data import DataTable, Parts, Passage, Passages, Quoted, dim, numbers, table, texts, title
from qarat.surfaces.tables.wording import (
    count,
    decimals,
    fixed,
    interval,
    listed,
    loss_and_error,
    perplexity_change,
    share,
    visible,
)
from qarat.values.fingerprints import changes_of
from qarat.values.records.comparison import Comparison, Contrast, score_difference
from qarat.values.records.origin import normal_interval, same_origin, spell_bounds
from qarat.values.records.scores import (
    Continuations,
    Divergence,
    DivergentToken,
    Evaluation,
    ZeroShot,
    paired_difference,
)

WORST = 5  # tokens listed where models stand side by side
_CONTEXT = 40  # characters of context before a token


def show_evaluation(record: Evaluation) -> Parts:
    """One evaluation on its own."""
    loss = f"loss {fixed(record.loss, 4)} nats per {record.unit}"
    yield title(record.label, record.provenance.model, f"perplexity {fixed(record.perplexity, 2)}", loss)
    yield dim(_tokens(record, record.unit))
    yield from map(dim, _kernels(record))


def compare(evaluations: Sequence[Evaluation]) -> Parts:
    """Evaluations of the same tokens against the first of them, which is float's.

    Raises:
        UserError: If they were measured on other models or tokens, or there are none.
    """
    if not evaluations:
        raise UserError("there are no evaluations to compare")
    first, *others = evaluations
    differences = [paired_difference(e, first) for e in others]
    digits = decimals([bound for d in differences for bound in (d.nats, *d.interval)])
    heads = ("perplexity", "Δ loss\n(nats)", "± SE\n(nats)", "95 % interval\n(nats)", "Δ perplexity\n(%)")
    rows = [(arm_label(first), fixed(first.perplexity, 2), "", "", "", "")]
    for e, d in zip(others, differences, strict=True):
        change = interval(d.interval, digits), perplexity_change(d.nats)
        rows.append((arm_label(e), fixed(e.perplexity, 2), *loss_and_error(d, digits), *change))
    yield table((*texts(""), *numbers(*heads)), rows)
    yield from ("", dim(_tokens(first, first.unit)))
    if others:
        clusters = count(differences[0].clusters, "cluster")
        yield dim(f"Δ: nats per {first.unit} over {first.label}, paired by window; errors over {clusters}")
    for e in evaluations:
        yield from (dim(f"{arm_label(e)}: {line}") for line in _kernels(e))
    if note := shared_transforms(evaluations):
        yield dim(note)
    if others and differences[0].clusters == 1:
        yield dim("one source alone gives no standard error")


def _kernels(record: Evaluation) -> Iterator[str]:
    """What computed its projections, where that may have been others than the reference."""
    for kernel, projections in record.kernels.items():
        yield f"{count(projections, 'projection')} by kernel {kernel}"


def arm_label(evaluation: Evaluation) -> str:
    """An evaluation's label, with what was done to the model before it was quantized: ``naive, with hadamard``."""
    transforms = changes_of(evaluation.provenance.model)
    return f"{evaluation.label}, with {', '.join(transforms)}" if transforms else evaluation.label


def shared_transforms(evaluations: Sequence[Evaluation]) -> str:
    """What several evaluations of one transformed model do not show; empty where there are none."""
    transformed = [e for e in evaluations if changes_of(e.provenance.model)]
    if len(transformed) < 2 or len({e.provenance.model for e in transformed}) > 1:
        return ""
    done = ", ".join(changes_of(transformed[0].provenance.model))
    labels = listed([e.label for e in transformed])
    return f"{labels} alike are of the model with {done}; what that buys is seen beside a run without it"


def _tokens(record: Evaluation | Divergence, unit: str) -> str:
    sources = count(len(set(record.sources)), "source")
    predicted = f"{sum(record.predicted):,} predicted {unit}s"
    return f"{count(len(record.nats), 'window')} of {sources}, {predicted}, {record.provenance.convention}"


def show_accuracy(record: ZeroShot) -> Parts:
    """One model's scores."""
    return compare_accuracy([record])


def compare_accuracy(records: Sequence[ZeroShot]) -> Parts:
    """Scores of the same questions; differences are to the first model's, paired question by question.

    Raises:
        UserError: If they answered other questions, or are of other models.
    """
    first, *others = records
    for other in others:
        same_origin(first.provenance, other.provenance, f"{first.label} and {other.label}")
    rows: list[tuple[str, ...]] = []
    of_each = [{(s.task, s.metric): s for s in record.scores} for record in records]
    for key, base in of_each[0].items():
        for record, scores in zip(records, of_each, strict=True):
            score = scores[key]
            change, error = score_difference(score, base)
            difference = (fixed(change, 4, sign=True), fixed(error, 4)) if record is not first else ("", "")
            questions = score.questions or len(score.items)
            answered = f"{questions:,}" if questions else ""
            rows.append(
                (*key, record.label, answered, fixed(score.value, 4), fixed(score.standard_error, 4), *difference)
            )
    columns = numbers("questions", "score", "± SE", "Δ", "± SE\nof Δ")
    yield table((*texts("task", "metric", "model"), *columns), rows)
    names = {task for task, _ in of_each[0]}
    yield dim(f"{count(len(names), 'task')}, {first.provenance.convention}, model {first.provenance.model[:12]}")
    yield from map(dim, local_note(names))


def local_note(tasks: Iterable[str]) -> list[str]:
    """What must be said of scores of local tasks; nothing where there are none."""
    return [UNPUBLISHED] if any(task in LOCAL_TASKS for task in tasks) else []


def show_divergence(record: Divergence) -> Parts:
    """One model's divergence from float: in all, by position, and the worst tokens."""
    mean, error = record.mean
    digits = decimals([mean])
    yield title(record.label, record.provenance.model, "divergence from float")
    yield (
        f"KL from float {fixed(mean, digits)} nats per token{spell_bounds(mean, error, digits)}, "
        f"99 % of tokens below {fixed(record.percentile_99, 3)}"
    )
    agreement, spread = (100 * part for part in record.agreement)
    yield f"same likeliest token on {agreement:.2f} % of tokens{spell_bounds(agreement, spread, 2)}"
    yield from (dim(_tokens(record, "token")), "", _by_position(record), "", departures(record))


def compare_divergence(records: Sequence[Divergence]) -> Parts:
    """Several models' divergence from one float model side by side, and where the last of them departs most.

    Raises:
        UserError: They are of other models or tokens.
    """
    yield agreement(records)
    yield from ("", dim(_tokens(records[0], "token")), "")
    yield from (f"where {records[-1].label} departs most:", departures(records[-1], WORST))


def agreement(records: Sequence[Divergence]) -> DataTable:
    """How often float's likeliest token stays the likeliest, and how far the predictions are from float's.

    Raises:
        UserError: The records are of other models or tokens.
    """
    first, *others = records
    for other in others:
        same_origin(first.provenance, other.provenance, f"{first.label} and {other.label}")
    digits = decimals([record.mean[0] for record in records])
    heads = ("same likeliest\ntoken (%)", "95 % interval", "KL from float\n(nats per token)", "95 % interval")
    rows = [
        (
            record.label,
            fixed(100 * record.agreement[0], 2),
            interval([100 * bound for bound in normal_interval(*record.agreement)], 2, sign=False),
            fixed(record.mean[0], digits),
            interval(normal_interval(*record.mean), digits, sign=False),
            fixed(record.percentile_99, 3),
        )
        for record in records
    ]
    return table((*texts(""), *numbers(*heads, "99 % of tokens\nbelow (nats)")), rows)


def _by_position(record: Divergence) -> DataTable:
    digits = decimals([b.divergence for b in record.positions])
    return table(
        numbers("tokens read", "predicted", "KL\n(nats)", "same\n(%)"),
        (
            (
                f"{b.first:,}" if b.first == b.last else f"{b.first:,} to {b.last:,}",
                f"{b.tokens:,}",
                fixed(b.divergence, digits),
                share(b.agreement, 1),
            )
            for b in record.positions
        ),
    )


def departures(record: Divergence, most: int | None = None) -> DataTable:
    """The tokens that diverge most: what stood before, what came, and what both models held likeliest."""
    columns = texts("behind", "came", "float's choice", f"{record.label}'s choice")
    return table((*numbers("KL\n(nats)"), *columns), map(_worst_token, record.worst[:most]))


def _worst_token(token: DivergentToken) -> tuple[str, ...]:
    choices = ((token.float_choice, token.float_probability), (token.choice, token.probability))
    return (
        fixed(token.divergence, 2),
        Quoted(f"…{visible(_on_one_line(token.context)[-_CONTEXT:])}", "dim"),
        _on_one_line(token.token),
        *(f"{_on_one_line(choice)} ({share(probability, 1, 0)} %)" for choice, probability in choices),
    )


def _on_one_line(text: str) -> str:
    """A text on one line in which white space is seen: ``⏎␣8`` is a newline and eight spaces."""
    line = text.replace("\n", "⏎").replace("\t", "⇥")
    return re.sub(" {2,}", lambda run: f"␣{len(run[0])} ", line)


def show_continuations(record: Continuations) -> Iterator[Passages]:
    """A prompt and each model's greedy continuation, marked from where it first departs from the first one's.

    Raises:
        UserError: If there are none.
    """
    if not record.texts:
        raise UserError("there are no continuations to show")
    first, reference = next(iter(record.texts.items()))
    lead = record.prompt.rpartition("\n")[2]
    passages = [Passage("prompt", "", record.prompt.rstrip())]
    for label, text in record.texts.items():
        shared = _shared_length(reference, text)
        note = "" if label == first else _departure(first, reference, text)
        passages.append(Passage(label, note, lead, text[:shared], text[shared:]))
    yield Passages("greedy continuations", tuple(passages))


def _departure(first: str, reference: str, text: str) -> str:
    """Where a continuation departs from the first one, in words."""
    shared = _shared_length(reference, text)
    if text == reference:
        return f"as {first}"
    if shared == len(text):
        return f"ends after {shared} characters, where {first} goes on"
    return f"departs from {first} after {shared} of {len(text)} characters"


def _shared_length(a: str, b: str) -> int:
    """Characters up to the first difference."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


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
