"""Estimation: the coefficients of a form from its points, in the logarithm of the response.

A point at y with standard error s and a law at f, with scatter τ about the law:

    by ratio        (ln y − ln f) / √(τ² + (s/y)²)
    by difference   (y − f) / √(s² + (τ·max(y, 0))²)      at or near zero, where a logarithm says nothing

Residuals go into Huber's loss with its usual corner at 1.345 standard deviations, which costs 5 % of efficiency where
errors are normal (Huber, Robust Statistics, 1981), or into squares. τ is estimated with the coefficients, in turns. The
objective has one minimum unless points count by difference or a term has an offset, hence several starts.

An offset may have no best value: the objective falls without end as it grows, ever more slowly, and where a descent
comes to rest depends on the last bits of a machine's arithmetic. So one start has every offset at the end of its range,
and wins where nothing nearer is better; what comes of it is said of the fit, or refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from qarat.stages.laws.equations import Vector, gradient, log_response
from qarat.stages.laws.forms import Form
from qarat.stages.laws.points import Points

_CORNER = 1.345
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_STARTS = 6
_TURNS = 12  # of coefficients and scatter
_FIRST_SCATTER = 0.3
_LEAST_SCATTER = 1e-6
_TOLERANCE = 1e-9
_FARTHEST_OFFSET = 100.0  # times the largest value: beyond, a shifted power is flat and the offset means nothing


@dataclass(frozen=True)
class Solution:
    """Coefficients of a form.

    Attributes:
        theta: (p,) float64, in the form's order with ln C first.
        scatter: About the law, in the logarithm.
        farthest: The most that each offset may be, (offsets,), in the unit of its variable.
    """

    theta: Vector
    scatter: float
    farthest: tuple[float, ...]


def estimate(form: Form, points: Points, method: str, seed: int = 0, start: Solution | None = None) -> Solution:
    """Fit a form.

    Args:
        form: What to fit.
        points: That identify its parameters.
        method: ``huber`` or ``ols``.
        seed: Of the starts.
        start: Of the whole data, for a sample of them: the place to begin, and the scatter and the bounds, which then
            stay. None tries several places.
    """
    farthest = start.farthest if start else tuple(_FARTHEST_OFFSET * np.max(points.x[t.variable]) for t in form.offsets)
    first = _least_squares(form, points, [np.min(points.x[t.variable]) for t in form.offsets])
    if method == "ols" and not form.offsets and not points.error.any():
        return Solution(first, start.scatter if start else _scatter(form, first, points, robust=False), farthest)
    if start is not None:
        return Solution(
            _minimize(form, points, method, start.scatter, start.theta, farthest)[0], start.scatter, farthest
        )
    starts, scatter = _starts(form, points, first, farthest, np.random.default_rng(seed)), _FIRST_SCATTER
    theta = first
    for _ in range(_TURNS):
        solutions = [_minimize(form, points, method, scatter, begin, farthest) for begin in starts]
        theta = min(solutions, key=lambda solution: solution[1])[0]
        before, scatter = scatter, _scatter(form, theta, points, robust=method == "huber")
        if abs(scatter - before) <= 1e-3 * before:
            break
        starts = [theta]
    return Solution(theta, scatter, farthest)


def log_residuals(form: Form, theta: Vector, points: Points) -> Vector:
    """Ln y − ln f of the points that count by ratio, (m,)."""
    counted = points.take(~points.by_difference)
    return np.log(counted.y) - log_response(form, theta, counted.x)


def _least_squares(form: Form, points: Points, offsets: Sequence[float]) -> Vector:
    """Ordinary least squares over the points that count by ratio, with the offsets as given."""
    counted = points.take(~points.by_difference)
    linear = 1 + len(form.terms)
    theta = np.ones(len(form.names))
    theta[linear:] = offsets
    columns = gradient(form, theta, counted.x)[:, :linear]
    theta[:linear] = np.linalg.lstsq(columns, np.log(counted.y), rcond=None)[0]
    return theta


def _starts(
    form: Form, points: Points, first: Vector, farthest: Sequence[float], generator: np.random.Generator
) -> list[Vector]:
    """The first, and others about it; offsets anywhere from a tenth of the least value to the largest, in the log.

    The last has every offset at the end of its range.
    """
    starts = [first]
    if not form.offsets and not points.by_difference.any():
        return starts  # one minimum
    linear = 1 + len(form.terms)
    for _ in range(_STARTS - 1):
        theta = first.copy()
        theta[1:linear] *= np.exp(generator.normal(0, 0.3, linear - 1))
        for i, term in enumerate(form.offsets):
            low, high = np.min(points.x[term.variable]) / 10, np.max(points.x[term.variable])
            theta[linear + i] = np.exp(generator.uniform(np.log(low), np.log(high)))
        middle = points.take(~points.by_difference)
        theta[0] += np.mean(np.log(middle.y) - log_response(form, theta, middle.x))
        starts.append(theta)
    return [*starts, _least_squares(form, points, farthest)] if form.offsets else starts


def _minimize(
    form: Form, points: Points, method: str, scatter: float, start: Vector, farthest: Sequence[float]
) -> tuple[Vector, float]:
    """One descent: the coefficients it ends at, and the objective there."""
    near_zero = points.by_difference
    y, x = points.y, points.x
    safe = np.where(near_zero, 1.0, y)
    by_ratio = np.sqrt(scatter**2 + (points.error / safe) ** 2)
    weight = np.where(near_zero, np.hypot(points.error, scatter * np.maximum(y, 0)), by_ratio)

    def residuals(theta: Vector) -> Vector:
        f = log_response(form, theta, x)
        return np.where(near_zero, y - np.exp(np.minimum(f, 700)), np.log(safe) - f) / weight

    def jacobian(theta: Vector) -> Vector:
        steep = np.where(near_zero, np.exp(np.minimum(log_response(form, theta, x), 700)), 1.0)
        return -gradient(form, theta, x) * (steep / weight)[:, None]

    count = len(start) - len(farthest)
    from scipy.optimize import least_squares  # here: its import takes long, and every verb would wait for it

    solution = least_squares(
        residuals,
        start,
        cast(Any, jacobian),
        bounds=([-np.inf] * count + [0.0] * len(farthest), [np.inf] * count + [*farthest]),
        loss="huber" if method == "huber" else "linear",
        f_scale=_CORNER,
        x_scale="jac",
        xtol=_TOLERANCE,
        ftol=_TOLERANCE,
        gtol=_TOLERANCE,
    )
    return solution.x, float(solution.cost)


def _scatter(form: Form, theta: Vector, points: Points, *, robust: bool) -> float:
    """Standard deviation about the law beyond the points' own errors, in the logarithm."""
    counted = points.take(~points.by_difference)
    residuals = log_residuals(form, theta, points)
    free = max(len(residuals) - len(theta), 1)
    if robust:
        spread = _MAD_TO_SIGMA * np.median(np.abs(residuals)) * np.sqrt(len(residuals) / free)
    else:
        spread = np.sqrt(np.sum(residuals**2) / free)
    own = np.median((counted.error / counted.y) ** 2) if len(counted) else 0.0
    return float(np.sqrt(max(spread**2 - own, _LEAST_SCATTER**2)))
