"""Checking: a law as it was saved, beside measurements that it has not seen.

A fit flatters itself, and errors on sizes left out still come from one table. The law's own test is another one: of
larger models, or other ratios. Each row is asked as `qarat.stages.laws.prediction` asks, either for the loss increase
at the row's ratio, or for the ratio that the row's loss allows, as of a table of budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qarat.ground.errors import UserError
from qarat.stages.laws.forms import FORMS, Form
from qarat.stages.laws.points import NEAR_ZERO, check_rows, nearest_group, response_of, shared_values
from qarat.stages.laws.prediction import choose_fit, choose_form, outside_domain, predict
from qarat.stages.laws.tables import Table
from qarat.values.records.law import CheckedRow, Fit, Law, LawCheck
from qarat.values.records.law_data import Measurement, loss_increase

ASKED = ("loss", "ratio")
_ROUNDING = 1e-9  # relative: of one number, computed twice


def check_law(law: Law, table: Table, form: str = "", variable: str = "") -> LawCheck:
    """Predict every row of a table, and say how far off that is.

    Args:
        law: Fitted or published.
        table: Rows at Q_r = 0 are the unquantized model and are left out.
        form: Which of the law's forms; empty takes the only or the best one.
        variable: Of `ASKED`; empty takes the loss, and of Law 1 the ratio.

    Raises:
        UserError: The law has no such form; the form does not model these rows, or answers to none of them.
    """
    name = form or choose_form(law)
    shape = FORMS.load(name)
    variable = variable or ("ratio" if shape.response == "billions" else "loss")
    if variable not in ASKED or variable not in shape.question or variable in shape.by:
        raise UserError(f"{name} does not answer with {variable!r}; it is about {', '.join(shape.question)}")
    rows = [row for row in table.rows if row.ratio is None or row.ratio > 0]
    if not rows:
        raise UserError(f"{table.title}: no row has a ratio above 0, so there is nothing to check")
    check_rows(shape, name, rows)
    checked: list[CheckedRow] = []
    refused: dict[str, list[str]] = {}
    for row in rows:
        try:
            checked.append(_check_row(law, shape, row, name, variable))
        except UserError as error:
            refused.setdefault(str(error), []).append(row.model)
    if not checked:
        raise UserError("\n".join(refused))
    notes = [f"{len(models)} rows not checked ({_listed(models)}): {reason}" for reason, models in refused.items()]
    return LawCheck(
        law=law.data,
        data=table.title,
        data_hash=table.hash,
        form=name,
        variable=variable,
        rows=tuple(checked),
        error=_error(checked, variable),
        notes=(*_seen_words(checked), *_differences(law, table), *notes),
    )


def _check_row(law: Law, form: Form, row: Measurement, name: str, variable: str) -> CheckedRow:
    loss, error = loss_increase(row)
    values = {v: loss if v == "loss" else getattr(row, v) for v in form.question}
    measured, error = (loss, error) if variable == "loss" else (values[variable], 0.0)
    known = {v: x for v, x in values.items() if v != variable}
    if "ratio" in form.by:  # as fitted: in groups of ratios that nearly agree
        known["ratio"] = nearest_group(known["ratio"], [f.group["ratio"] for f in law.fits if "ratio" in f.group])
    answer, (fit, _) = predict(law, known, name), choose_fit(law, known, name)
    return CheckedRow(
        model=row.model,
        known=answer.known,
        measured=measured,
        standard_error=error,
        predicted=answer.value,
        interval=answer.measured_interval,
        outside=tuple(outside_domain(fit, known)),
        near_zero=variable == "loss" and (measured <= 0 or measured < NEAR_ZERO * error),
        fitted=_was_fitted(law, form, fit, row),
    )


def _was_fitted(law: Law, form: Form, fit: Fit, row: Measurement) -> bool:
    """Whether a row is among a fit's points: the same model, variables and measured value, and the law's format."""
    if any(getattr(row, column) != value for column, value in law.shared.items()):
        return False
    response = response_of(form, row)
    return any(
        p.model == row.model
        and _same(p.measured, response)
        and all(_same(value, getattr(row, v) or 0.0) for v, value in p.variables.items())
        for p in fit.points
    )


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_ROUNDING)


def _error(rows: Sequence[CheckedRow], variable: str) -> float:
    """The mean of what predictions are off by, without sign; NaN where no row counts."""
    off = [abs(row.off(variable)) for row in rows if row.counts]
    return sum(off) / len(off) if off else math.nan


def _seen_words(rows: Sequence[CheckedRow]) -> list[str]:
    """How many of the rows the law was fitted to, if any."""
    seen = sum(row.fitted for row in rows)
    if not seen:
        return []
    if seen == len(rows):
        return [f"all {seen} rows are among those the law was fitted to: how close it is to them is no test of it"]
    return [f"{seen} of {len(rows)} rows are among those the law was fitted to: left out of the mean"]


def _differences(law: Law, table: Table) -> list[str]:
    """What a reader must know of a law beside these rows."""
    theirs = {**shared_values(table), "how": table.how}
    ours = {**law.shared, "how": law.how}
    notes = [
        f"{key.replace('_', ' ')} differs: the law has {value!r}, these rows {theirs[key]!r}"
        for key, value in ours.items()
        if value and theirs.get(key) and theirs[key] != value
    ]
    notes += [f"the law's data: {defect}" for defect in law.defects]
    return notes + [f"these rows: {defect}" for defect in table.defects if defect not in law.defects]


def _listed(models: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(models))
