"""A law: its forms, coefficients and points, what sizes it allows, what it answers, and how that stands the test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from qarat.stages.laws.forms import FORMS
from qarat.surfaces.tables.data import DataTable, Marked, Parts, bold, dim, numbers, pairs, table, texts
from qarat.surfaces.tables.law_shares import shares, spell_budget
from qarat.surfaces.tables.wording import GAP, count, fixed
from qarat.values.records.law import CheckedRow, Fit, FittedPoint, Law, LawCheck, Prediction
from qarat.values.records.law_data import spell_value, spell_values

_ENDS = {
    "ratio": ("largest Q_r", "smallest Q_r"),
    "size": ("smallest N", "largest N"),
    "block": ("largest Q_b", "smallest Q_b"),
    "bits": ("fewest bits", "most bits"),
    "tokens": ("most tokens", "fewest tokens"),
    "loss": ("loss increase", "loss increase"),
}
"""What is asked of each variable; then the same of a law that runs the other way."""


def show_prediction(prediction: Prediction) -> Parts:
    """An answer, its intervals, and whether it lies inside what was fitted."""
    variable = prediction.variable
    answer = prediction.none or spell_value(variable, prediction.value)
    yield pairs(
        (
            (Marked(end_of(variable, turned=prediction.turned), "bold"), Marked(answer, "bold")),
            ("95 % of the law", spell_interval(variable, prediction.interval)),
            ("95 % of a measurement", spell_interval(variable, prediction.measured_interval)),
        )
    )
    yield ""
    yield f"at {spell_values(prediction.known)}; {prediction.form}: {FORMS.load(prediction.form).equation}"
    if not prediction.outside:
        yield "inside the fitted domain, as far as that is known"
    yield from (f"outside the fitted domain: {line}" for line in prediction.outside)
    yield from map(dim, prediction.notes)


def end_of(variable: str, *, turned: bool) -> str:
    """Which end of a variable a law's answer is."""
    return _ENDS[variable][turned]


def spell_interval(variable: str, bounds: Sequence[float]) -> str:
    """The bounds of a variable; ``n/a`` for none."""
    return " to ".join(spell_value(variable, bound) for bound in bounds) or "n/a"


def spell_measured(value: float, standard_error: float) -> str:
    """A measured value with its standard error, where that is known."""
    return f"{value:.4g}" + (f" ± {standard_error:.2g}" if standard_error else "")


def show_law_check(record: LawCheck) -> Parts:
    """Predicted beside measured, row by row, what that comes to, and what sets law and rows apart."""
    of_loss = record.variable == "loss"
    known = [v for v in record.rows[0].known if v != "loss" or record.variable == "ratio"]
    places = [_place(row) for row in record.rows]
    same = len(set(places)) == 1  # then one line says it, and the table is narrower
    rows = (
        (
            row.model,
            *(_spell(v, row.known[v]) for v in known),
            spell_measured(row.measured, row.standard_error),
            f"{row.predicted:.4g}",
            _off(row, record.variable),
            " to ".join(f"{bound:.3g}" for bound in row.interval) or "n/a",
            "" if same else place,
        )
        for row, place in zip(record.rows, places, strict=True)
    )
    measured = f"measured\n({'nats' if of_loss else 'Q_r'})"
    heads = numbers(*known, measured, "predicted", "off by\n(%)" if of_loss else "off by", "95 % of a\nmeasurement")
    yield bold("law check", f"{GAP}{record.law}")
    yield f"by {record.data}"
    yield f"{record.form}: {FORMS.load(record.form).equation}"
    if same and not record.rows[0].fitted:
        yield f"every row is {places[0]} the fitted domain"
    yield from ("", table((*texts("model"), *heads, *texts("fitted\ndomain")), rows).used(), "")
    yield bold(_summary(record))
    yield from map(dim, record.notes)


def _place(row: CheckedRow) -> str:
    """Where a row lies, as seen from the law."""
    return "a fitted row" if row.fitted else "outside" if row.outside else "inside"


def _spell(variable: str, value: float) -> str:
    """A value as a column holds it: of a loss, the budget that it is."""
    return f"ppl{100 * math.expm1(value):+.3g}%" if variable == "loss" else spell_value(variable, value)


def _off(row: CheckedRow, variable: str) -> str:
    if row.near_zero:
        return "near 0"
    off = row.off(variable)
    return fixed(100 * off, 1, sign=True) if variable == "loss" else fixed(off, 3, sign=True)


def _summary(record: LawCheck) -> str:
    counted = [row for row in record.rows if row.counts]
    if not counted:
        return "no row counts in a mean"
    mean = f"{fixed(100 * record.error, 1)} %" if record.variable == "loss" else fixed(record.error, 3)
    summary = f"off by {mean} on average over {count(len(counted), 'row')}"
    held = [row for row in record.rows if row.interval and not row.fitted]
    inside = sum(row.interval[0] <= row.measured <= row.interval[1] for row in held)
    return summary + (f"; {inside} of {len(held)} within the 95 % of a measurement" if held else "; no intervals")


_BUDGETS = (5.0, 10.0, 20.0)  # per cent of perplexity
_ORDER = ("size", "tokens", "block", "ratio", "bits")
_METHODS = {"ols": "least squares of the logarithm", "huber": "Huber's loss of the logarithm", "published": "printed"}


def show_law(law: Law) -> Parts:
    """Fit quality of every form, coefficients with intervals, predicted against measured, and what sizes allow."""
    yield bold("law", f"{GAP}{law.data}")
    if law.shared:
        yield "; ".join(f"{k.replace('_', ' ')} {v}" for k, v in law.shared.items())
    if any(fit.quality for fit in law.fits):
        yield from ("", compared_forms(law))
    if law.uncompared:
        yield f"no form is the best: {why_uncompared(law)}"
    for fit in law.fits:
        group = f"; {spell_values(fit.group)}" if fit.group else ""
        yield from ("", bold(fit.form, f"{GAP}{FORMS.load(fit.form).equation}{group}"))
        yield coefficients([fit]).only((2, 3, 4))
        yield from map(dim, fit_lines(fit))
        if fit.points and (not law.best or fit.form == law.best):
            yield from ("", _points(fit))
    yield from _shares(law)
    if law.refused:
        yield from ("", bold("what these data cannot fit"), pairs(law.refused.items()))
    yield from (dim(f"the law's data: {defect}") for defect in law.defects)


def compared_forms(law: Law) -> DataTable:
    """How well each fit does; no rows for published laws, which come without."""
    columns = numbers("points", "R² of\nlogarithm", "mean error\n(%)", "on sizes left\nout (%)")
    rows = (
        (
            fit.form,
            spell_values(fit.group),
            str(len(fit.points)),
            fixed(quality.r_squared, 3),
            fixed(100 * quality.error, 1),
            fixed(100 * quality.left_out_error[0], 1) if quality.left_out_error else "n/a",
            "best" if fit.form == law.best else "",
        )
        for fit in sorted(law.fits, key=lambda fit: bool(fit.group))  # those for all points, which compare, first
        for quality in fit.quality
    )
    return table((*texts("form", wrap=False), *texts("fitted for"), *columns, *texts("choice")), rows).used()


def coefficients(fits: list[Fit]) -> DataTable:
    """Each coefficient of some fits with its interval."""
    rows = (
        (fit.form, spell_values(fit.group), p.name, f"{p.value:.4g}", " to ".join(f"{b:.4g}" for b in p.interval))
        for fit in fits
        for p in fit.parameters
    )
    return table((*texts("form", "fitted for", "parameter"), *numbers("value", "95 % interval")), rows)


def fit_lines(fit: Fit) -> Iterator[str]:
    """How a fit was made, and what a reader must know of it."""
    drawn = f"; intervals from resampling {count(fit.units, fit.resampled[:-1])}" if fit.resampled else ""
    yield f"{_METHODS[fit.method]}{drawn}; {FORMS.load(fit.form).source}"
    for quality in fit.quality:
        unseen = [f"; R² of the logarithm on sizes left out: {fixed(r, 3)}" for r in quality.left_out_r_squared]
        scatter = 100 * math.expm1(quality.scatter)
        yield f"scatter about the law: {scatter:.0f} % (one standard deviation){''.join(unseen)}"
    for a, b, correlation in fit.correlated:
        yield f"{a} and {b} trade off (correlation {correlation:.3f}): neither is known well alone"
    yield from fit.notes
    for p in _ordered(fit):
        if p.by_difference:
            yield f"at or near zero, counted by difference over its error: {p.model}, {spell_values(p.variables)}"


def notes_table(law: Law, fits: list[Fit]) -> DataTable:
    """How each fit was made and what limits it; the forms that could not be fitted; what is wrong with the data."""
    rows = [(fit.form, spell_values(fit.group), line) for fit in fits for line in fit_lines(fit)]
    rows += [(name, "", f"not fitted: {reason}") for name, reason in law.refused.items()]
    rows += [("", "", f"the law's data: {defect}") for defect in law.defects]
    return table(texts("form", "fitted for", "what must be known"), rows)


def why_uncompared(law: Law) -> str:
    """Why the forms of a law cannot be compared."""
    names = law.uncompared
    return f"without some size there are too few data for {' and '.join(names)}, so no error on sizes left out"


def off_by(point: FittedPoint, predicted: float) -> float:
    """What a prediction is off by, in per cent of the measured; for points that are not near zero."""
    return 100 * (predicted / point.measured - 1)


def _ordered(fit: Fit) -> list[FittedPoint]:
    """A fit's points, by size, then block size, then ratio."""
    return sorted(fit.points, key=lambda p: tuple(p.variables.get(v, 0.0) for v in _ORDER))


def _points(fit: Fit) -> DataTable:
    """Predicted against measured, with the residual in per cent of the measured."""
    form = FORMS.load(fit.form)
    varied = [v for v in fit.points[0].variables if v != "size" or form.response != "billions"]
    unseen = numbers("left out:\noff by (%)") if any(p.left_out for p in fit.points) else ()
    unit = {"loss": "nats", "perplexity-increase": "%", "billions": "N, 10⁹"}[form.response]
    rows = (
        (
            p.model,
            *(spell_value(v, p.variables[v]) if v in p.variables else "" for v in varied),
            spell_measured(p.measured, p.standard_error),
            f"{p.predicted:.4g}",
            "near 0" if p.by_difference else fixed(off_by(p, p.predicted), 1, sign=True),
            *([_left_out(p)] if unseen else []),
        )
        for p in _ordered(fit)
    )
    heads = numbers(*varied, f"measured\n({unit})", "predicted", "off by\n(%)")
    return table((*texts("model"), *heads, *unseen), rows)


def _left_out(p: FittedPoint) -> str:
    if not p.left_out or p.by_difference:
        return ""
    return fixed(off_by(p, p.left_out[0]), 1, sign=True)


def _shares(law: Law) -> Parts:
    """What each size can have low within a few budgets; nothing where no form is about both."""
    allowed = shares(law)
    if allowed is None:
        return
    answers = [[allowed.within(percent, own) for percent in _BUDGETS] for own in allowed.models]
    rows: list[list[str]] = []
    for own, row in zip(allowed.models, answers, strict=True):
        ranges = (f" ({spell_interval('ratio', a.interval)})" if a.interval else "" for a in row)
        cells = (f"{a.none or spell_value('ratio', a.value)}{held}" for a, held in zip(row, ranges, strict=True))
        rows.append([*(spell_value(v, value) for v, value in own.items()), *cells])
    end = end_of("ratio", turned=answers[0][0].turned)
    of_law = " (95 % of the law)" if answers[0][0].interval else ""
    yield from ("", bold(f"{end}{of_law} by {allowed.fit.form}{allowed.conditions}"))
    yield table(numbers(*allowed.models[0], *map(spell_budget, _BUDGETS)), rows)
