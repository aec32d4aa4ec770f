"""Laws as tables: the measurements there are, the forms, how well they fit, and what they answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from qarat.stages.laws.forms import FORMS, Catalog
from qarat.stages.laws.forms.base import RESPONSES, VARIABLES, Form
from qarat.stages.laws.tables import COLUMNS, Table
from qarat.surfaces.tables.law_shares import shares, spell_budget
from qarat.surfaces.tables.law_words import (
    COEFFICIENTS,
    COMPARED,
    coefficients,
    compared,
    fit_lines,
    group_words,
    off_by,
    ordered,
)
from qarat.surfaces.tables.layout import bare, cells, fixed, label, number, table, visible, words
from qarat.values.records.law import Fit, FittedPoint, Law, Prediction
from qarat.values.records.law_data import spell_value, spell_values

_BUDGETS = (5.0, 10.0, 20.0)  # per cent of perplexity


def show_tables(tables: Sequence[Table]) -> RenderableType:
    """What tables there are, and what is known to be wrong with them."""
    out = table(label("name", wrap=False), number("rows"), label("what it holds"), label("source"), label("notes"))
    # Tables share most of what is to be said of them: each thing is said once, below, under a number.
    notes: dict[str, int] = {}
    for one in tables:
        said = [notes.setdefault(words, len(notes) + 1) for words in (one.how, *one.defects) if words]
        cells(out, one.name, str(len(one.rows)), one.title, one.source, " ".join(map(str, said)))
    below = bare(number(""), label(""))
    for text, n in notes.items():
        cells(below, str(n), text)
    return Group(out, Text(), below)


def show_table(one: Table) -> RenderableType:
    """One table: what all rows share in words, and the rest in rows."""
    values = {c: [_cell(getattr(row, c), c) for row in one.rows] for c in COLUMNS}
    varied = [c for c in COLUMNS if len(set(values[c])) > 1]
    shared = bare(label(""), label(""))
    for column in COLUMNS:
        if column not in varied and values[column][0]:
            cells(shared, column, values[column][0])
    out = table(*(label(c) if isinstance(getattr(one.rows[0], c), str) else number(c) for c in varied))
    for row in zip(*(values[c] for c in varied), strict=True):
        cells(out, *row)
    return Group(show_tables([one]), Text(), shared, Text(), out)


def show_forms(catalog: Catalog) -> RenderableType:
    """Every form: equation, source, needs, and the coefficients that its authors print."""
    parts: list[RenderableType] = []
    for name, form in catalog.forms.items():
        needs = [f"{n} values of {v}" for v, n in form.needs.items()]
        lines = [
            form.equation,
            f"gives {RESPONSES[form.response]}; {'; '.join(f'{v}: {VARIABLES[v]}' for v in form.variables)}",
            f"source: {form.source}",
            f"needs {form.points} points, {', '.join(needs)}" + ("; whole models in one precision" * form.uniform),
        ]
        if form.transfers:
            lines.append(f"transfer: {form.transfers}")
        lines += _printed(form)
        indented = Padding(Group(*map(words, lines)), (0, 0, 1, 2))
        parts += [Text.assemble((name, "bold"), f"  {form.title}"), indented]
    return Group(*parts)


def _printed(form: Form) -> Iterator[str]:
    """The authors' coefficients; below those of one domain, that and what must be known of them."""
    for (domain, note), alike in groupby(form.published, key=lambda p: (p.domain, p.note)):
        for p in alike:
            group = f"{spell_values(p.group)}, " if p.group else ""
            printed = ", ".join(f"{k} = {v:.5g}" for k, v in p.values.items())
            yield f"printed {f'({p.name}) ' if p.name else ''}{group}{printed}"
        ranges = (f"{v} {spell_value(v, low)} to {spell_value(v, high)}" for v, (low, high) in domain.items())
        yield f"fitted to {', '.join(ranges)}{f'; {note}' if note else ''}"


def show_law(law: Law) -> RenderableType:
    """Fit quality of every form, coefficients with intervals, predicted against measured, and what sizes allow."""
    shared = "; ".join(f"{k.replace('_', ' ')} {v}" for k, v in law.shared.items())
    parts: list[RenderableType] = [Text.assemble(("law", "bold"), f"  {visible(law.data)}")]
    if shared:
        parts.append(words(shared))
    if any(fit.quality for fit in law.fits):
        parts += [Text(), _compare(law)]
    if law.uncompared:
        parts.append(words(f"no form is the best: {uncompared_words(law)}"))
    shown = [fit for fit in law.fits if not law.best or fit.form == law.best]
    for fit in law.fits:
        parts += [Text(), *_show_fit(fit, points=fit in shown)]
    parts += _show_shares(law)
    if law.refused:
        parts += [Text(), words("what these data cannot fit", "bold")]
        reasons = bare(label("", wrap=False), label(""))
        for name, reason in law.refused.items():
            cells(reasons, name, reason)
        parts.append(reasons)
    parts += [words(f"the law's data: {defect}", "dim") for defect in law.defects]
    return Group(*parts)


def uncompared_words(law: Law) -> str:
    """Why the forms of a law cannot be compared."""
    names = law.uncompared
    return f"without some size there are too few data for {' and '.join(names)}, so no error on sizes left out"


def show_prediction(prediction: Prediction) -> RenderableType:
    """An answer, its intervals, and whether it lies inside what was fitted."""
    asked = prediction.asked
    out = bare(label("", wrap=False), label(""))
    question = _OTHER_ENDS if prediction.turned else _QUESTIONS
    cells(out, question[asked], prediction.none or spell_value(asked, prediction.value), style="bold")
    cells(out, "95 % of the law", _interval(asked, prediction.interval))
    cells(out, "95 % of a measurement", _interval(asked, prediction.measured_interval))
    known = spell_values(prediction.known)
    form = FORMS.load(prediction.form)
    where = (
        [f"outside the fitted domain: {line}" for line in prediction.outside]
        if prediction.outside
        else ["inside the fitted domain, as far as that is known"]
    )
    lines = [f"at {known}; {prediction.form}: {form.equation}", *where]
    return Group(out, Text(), *(words(line) for line in lines), *(words(note, "dim") for note in prediction.notes))


_QUESTIONS = {
    "ratio": "largest Q_r",
    "size": "smallest N",
    "block": "largest Q_b",
    "bits": "fewest bits",
    "tokens": "most tokens",
    "loss": "loss increase",
}
_OTHER_ENDS = {
    "ratio": "smallest Q_r",
    "size": "largest N",
    "block": "smallest Q_b",
    "bits": "most bits",
    "tokens": "fewest tokens",
}
"""The same of a law that runs the other way."""


def _compare(law: Law) -> RenderableType:
    form, group, *numbers, best = COMPARED
    out = table(label(form, wrap=False), label(group), *map(number, numbers), label(best))
    for row in compared(law):
        cells(out, *row)
    return out


def _show_fit(fit: Fit, *, points: bool) -> list[RenderableType]:
    parameter, *numbers = COEFFICIENTS
    out = table(label(parameter), *map(number, numbers))
    for row in coefficients(fit):
        cells(out, *row)
    equation = FORMS.load(fit.form).equation
    head = Text.assemble((fit.form, "bold"), f"  {equation}{f'; {group_words(fit)}' if fit.group else ''}")
    parts: list[RenderableType] = [head, out, *(words(line, "dim") for line in fit_lines(fit))]
    return [*parts, Text(), _points(fit)] if points and fit.points else parts


def _show_shares(law: Law) -> list[RenderableType]:
    """What each size can have low within a few budgets; nothing where no form is about both."""
    found = shares(law)
    if found is None:
        return []
    answers = [[found.within(percent, own) for percent in _BUDGETS] for own in found.models]
    out = table(*map(number, found.models[0]), *(number(spell_budget(percent)) for percent in _BUDGETS))
    for own, row in zip(found.models, answers, strict=True):
        ranges = (f" ({_interval('ratio', a.interval)})" if a.interval else "" for a in row)
        shown = (f"{a.none or spell_value('ratio', a.value)}{held}" for a, held in zip(row, ranges, strict=True))
        cells(out, *(spell_value(v, value) for v, value in own.items()), *shown)
    which = (_OTHER_ENDS if answers[0][0].turned else _QUESTIONS)["ratio"]
    of_law = " (95 % of the law)" if answers[0][0].interval else ""
    head = words(f"{which}{of_law} by {found.fit.form}{found.conditions}", "bold")
    return [Text(), head, out]


def _points(fit: Fit) -> RenderableType:
    """Predicted against measured, with the residual in per cent of the measured."""
    form = FORMS.load(fit.form)
    varied = [v for v in fit.points[0].variables if v != "size" or form.response != "billions"]
    unseen = any(p.left_out for p in fit.points)
    unit = {"loss": "nats", "perplexity-increase": "%", "billions": "N, 10⁹"}[form.response]
    out = table(
        label("model"),
        *(number(v) for v in varied),
        number(f"measured\n({unit})"),
        number("predicted"),
        number("off by\n(%)"),
        *([number("left out:\noff by (%)")] if unseen else []),
    )
    for p in ordered(fit):
        cells(
            out,
            p.model,
            *(spell_value(v, p.variables[v]) if v in p.variables else "" for v in varied),
            f"{p.measured:.4g}" + (f" ± {p.standard_error:.2g}" if p.standard_error else ""),
            f"{p.predicted:.4g}",
            "near 0" if p.by_difference else fixed(off_by(p, p.predicted), 1, sign=True),
            *([_left_out(p)] if unseen else []),
        )
    return out


def _left_out(p: FittedPoint) -> str:
    if not p.left_out or p.by_difference:
        return ""
    return fixed(off_by(p, p.left_out[0]), 1, sign=True)


def _interval(asked: str, bounds: Sequence[float]) -> str:
    return " to ".join(spell_value(asked, bound) for bound in bounds) or "n/a"


def _cell(value: object, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return spell_value(column, value) if isinstance(value, float) else str(value)
