"""Fitting: a table of measurements to a `Law`, with intervals, quality and what must be known of it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

import numpy as np

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.stages.laws.comparison import compare_forms, with_left_out
from qarat.stages.laws.equations import Vector, gradient, has_numbers, log_response, natural
from qarat.stages.laws.estimation import Solution, estimate, log_residuals
from qarat.stages.laws.forms import FORMS, Form
from qarat.stages.laws.points import (
    Points,
    check_points,
    in_group,
    make_points,
    open_parameters,
    shared_values,
    unmodelled,
)
from qarat.stages.laws.resampling import Resample, fewest_draws, interval, resample
from qarat.stages.laws.tables import Table
from qarat.values.records.law import Fit, FittedPoint, Law, Parameter, Quality

ALL = "all"
METHODS = ("paper", "huber", "ols")
_CORRELATED = 0.9
_FEWEST_DRAWS = 100
_DIGITS = 8  # of stored draws
_REJECTED = 0.1  # share of samples drawn again beyond which a reader should know


def fit_law(
    table: Table,
    form: str = ALL,
    *,
    method: str = "paper",
    draws: int = 500,
    seed: int = 0,
    standard_error: float | None = None,
    progress: Progress = no_progress,
) -> Law:
    """Fit a form, or every form that the data allow, side by side.

    Args:
        table: The measurements.
        form: Name, or `ALL`.
        method: ``huber`` or ``ols``, both in the logarithm; ``paper`` takes for each form what its authors took.
        draws: Bootstrap estimates behind the intervals.
        seed: Of starts and resampling.
        standard_error: Of rows that have none, in nats per token.
        progress: Called as forms are fitted.

    Raises:
        UserError: Unknown form or method; the form does not model these data or needs more; with `ALL`, no form fits:
            every form's reason.
    """
    _check_options(method, draws, standard_error)
    names = FORMS.names() if form == ALL else [form]
    fits: list[Fit] = []
    refused: dict[str, str] = {}
    for done, name in enumerate(names):
        progress("fit", done, len(names))
        fitted, reason = _fit_form(name, table, method, draws, seed, standard_error)
        fits += fitted
        if reason:
            refused[name] = reason
    progress("fit", len(names), len(names))
    if not fits:
        every = "no form fits these data:\n" + "\n".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UserError(every if form == ALL else refused[form])
    versions = {package: metadata.version(package) for package in ("qarat", "numpy", "scipy")}
    fits, best = compare_forms(fits) if form == ALL else (fits, "")
    return Law(
        data=table.title,
        data_hash=table.hash,
        shared=shared_values(table),
        versions=versions,
        seed=seed,
        fits=tuple(fits),
        refused=refused,
        best=best,
        how=table.how,
        defects=table.defects,
    )


def _check_options(method: str, draws: int, standard_error: float | None) -> None:
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if standard_error is not None and not 0 < standard_error < np.inf:
        raise UserError(f"a standard error of {standard_error:g} nats is none: give more than 0")
    if draws != 0 and draws < _FEWEST_DRAWS:
        raise UserError(f"{draws} bootstrap draws: give 0 for no intervals, or at least {_FEWEST_DRAWS}")


def _fit_form(
    name: str, table: Table, method: str, draws: int, seed: int, standard_error: float | None
) -> tuple[list[Fit], str]:
    """The fits, one for each group, and why there are none, or why some groups have none."""
    form = FORMS.load(name)
    try:
        groups = make_points(form, name, table, standard_error)
    except UserError as error:
        return [], str(error)
    fits: list[Fit] = []
    problems: list[str] = []
    for points in groups:
        try:
            check_points(form, name, points)
            how = form.method if method == "paper" else method
            fits.append(_fit_group(form, name, points, how, draws, seed, unmodelled(form, table)))
        except UserError as error:
            problems.append(str(error))
    return fits, "\n".join(problems)


def _fit_group(form: Form, name: str, points: Points, method: str, draws: int, seed: int, notes: Sequence[str]) -> Fit:
    fitted = estimate(form, points, method, seed)
    if not has_numbers(form, fitted.theta):
        open_ones = " and ".join(term.offset for term in form.offsets) or "its coefficients"
        raise UserError(
            f"{name}{in_group(points.group)} comes out with ln {form.prefactor} = {fitted.theta[0]:.0f}, of which "
            f"there is no number {form.prefactor}: these data do not fix {open_ones}"
        )
    drawn = resample(form, points, fitted, method, draws, seed) if draws else None
    left_out = _leave_sizes_out(form, points, method, seed) if "size" not in form.by else {}
    fit = Fit(
        form=name,
        group=dict(points.group),
        parameters=_parameters(form, fitted, drawn),
        method=method,
        domain=_domain(form, points),
        resampled=drawn.resampled if drawn else "",
        units=drawn.units if drawn else 0,
        points=_fitted_points(form, points, fitted, left_out),
        quality=(_quality(form, points, fitted),),
        correlated=_correlated(form, points, fitted, drawn),
        notes=(*notes, *([points.note] if points.note else []), *_notes(form, points, fitted, drawn)),
    )
    return with_left_out(fit)


def _parameters(form: Form, fitted: Solution, drawn: Resample | None) -> tuple[Parameter, ...]:
    values = natural(form, fitted.theta)
    if drawn is None:
        return tuple(Parameter(n, float(v)) for n, v in zip(form.names, values, strict=True))
    draws = np.array([natural(form, theta) for theta in drawn.draws])
    return tuple(
        Parameter(n, float(v), interval(column, drawn.units), tuple(float(f"{d:.{_DIGITS}g}") for d in column))
        for n, v, column in zip(form.names, values, draws.T, strict=True)
    )


def _domain(form: Form, points: Points) -> dict[str, tuple[float, float]]:
    ranges = {v: (float(values.min()), float(values.max())) for v, values in points.x.items()}
    if form.response == "billions":
        return ranges | {"size": (float(points.sizes.min()), float(points.sizes.max()))}
    response = points.y if form.response == "loss" else np.log1p(points.y / 100)
    return ranges | {"loss": (float(response.min()), float(response.max()))}


def _leave_sizes_out(form: Form, points: Points, method: str, seed: int) -> dict[float, Vector]:
    """Size to the coefficients fitted without it, where the others still identify them."""
    thetas: dict[float, Vector] = {}
    for size in sorted(set(points.sizes)):
        rest = points.take(points.sizes != size)
        counted = rest.take(~rest.by_difference)
        if len(counted) > len(form.names) and not open_parameters(form, counted):
            thetas[float(size)] = estimate(form, rest, method, seed).theta
    return thetas


def _fitted_points(
    form: Form, points: Points, fitted: Solution, left_out: dict[float, Vector]
) -> tuple[FittedPoint, ...]:
    predicted = np.exp(log_response(form, fitted.theta, points.x))
    unseen = {size: np.exp(log_response(form, theta, points.x)) for size, theta in left_out.items()}
    columns = zip(points.models, points.y, points.error, predicted, points.by_difference, points.sizes, strict=True)
    return tuple(
        FittedPoint(
            model=model,
            variables={v: float(x[i]) for v, x in points.x.items()} | ({"size": float(size)} if size else {}),
            measured=float(measured),
            standard_error=float(error),
            predicted=float(value),
            left_out=(float(unseen[size][i]),) if size in unseen else (),
            by_difference=bool(near_zero),
        )
        for i, (model, measured, error, value, near_zero, size) in enumerate(columns)
    )


def _quality(form: Form, points: Points, fitted: Solution) -> Quality:
    """Of the fit itself; sizes left out come later."""
    residuals = log_residuals(form, fitted.theta, points)
    counted = points.take(~points.by_difference)
    total = np.sum((np.log(counted.y) - np.mean(np.log(counted.y))) ** 2)
    r_squared = 1 - np.sum(residuals**2) / total if total > 0 else 0.0
    return Quality(float(r_squared), float(np.mean(np.abs(np.expm1(-residuals)))), (), fitted.scatter)


def _correlated(
    form: Form, points: Points, fitted: Solution, drawn: Resample | None
) -> tuple[tuple[str, str, float], ...]:
    """Pairs that the data hardly tell apart."""
    covariance = np.cov(drawn.draws.T) if drawn else _covariance(form, points, fitted)
    deviation = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore", divide="ignore"):  # a parameter that never moves correlates with none
        matrix = np.nan_to_num(covariance / np.outer(deviation, deviation))
    pairs = [(i, j) for i in range(len(matrix)) for j in range(i) if abs(matrix[i, j]) > _CORRELATED]
    return tuple((form.names[j], form.names[i], round(float(matrix[i, j]), 4)) for i, j in pairs)


def _covariance(form: Form, points: Points, fitted: Solution) -> Vector:
    """Of the parameters, (p, p), each in a unit of its own, by the gradient at the points that count by ratio."""
    counted = points.take(~points.by_difference)
    spread = np.hypot(fitted.scatter, counted.error / counted.y)
    jacobian = gradient(form, fitted.theta, counted.x) / spread[:, None]
    inverse = np.linalg.pinv(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300))
    return inverse @ inverse.T


def _notes(form: Form, points: Points, fitted: Solution, drawn: Resample | None) -> list[str]:
    notes: list[str] = []
    if "size" in form.variables and (sizes := len(np.unique(points.sizes))) == 2:
        notes.append(f"{sizes} sizes fix the exponent of N exactly: nothing checks that the law is one in N")
    for shift, term in zip(fitted.theta[1 + len(form.terms) :], form.offsets, strict=True):
        if shift < 1e-3 or shift > 50 * points.x[term.variable].max():
            notes.append(f"{term.offset} is at the end of its range: these data do not fix it")
    if drawn is None:
        return notes
    if drawn.resampled == "points" and len(set(points.models)) > 1:
        notes.append("too few models to draw whole ones: intervals say how sure the law is of these, not of others")
    if drawn.rejected > _REJECTED:
        notes.append(f"{drawn.rejected:.0%} of the bootstrap samples did not fix every parameter and were drawn again")
    if len(drawn.draws) < (needed := fewest_draws(drawn.units)):
        notes.append(
            f"an interval from {drawn.units} {drawn.resampled} ends where one draw in {needed} lies beyond; of "
            f"{len(drawn.draws)} it ends at the last one, which is too narrow: `draws` {needed}"
        )
    return notes
