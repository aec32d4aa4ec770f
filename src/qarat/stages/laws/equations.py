"""What is computed with a form: values, gradients and inverses, the same few lines for every law.

θ is an array (p,) with ln C first, then a coefficient for each term, then each offset; ``x`` holds the variables by
name, (n,) each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qarat.stages.laws.forms import Form, Term

Vector = NDArray[np.float64]
_MOST_LOG = 700.0  # beyond, e to it is no float


def log_response(form: Form, theta: Vector, x: Mapping[str, Vector]) -> Vector:
    """Ln y, (n,)."""
    total = theta[0]
    for slope, g in zip(theta[1:], _summands(form, theta, x), strict=False):
        total = total + slope * g
    return total


def gradient(form: Form, theta: Vector, x: Mapping[str, Vector]) -> Vector:
    """Of ln y with respect to θ, (n, p)."""
    columns = _summands(form, theta, x)
    shifts, slopes = _shifts(form, theta), dict(zip(form.terms, theta[1:], strict=False))
    # d of θ · ln(x + d), with respect to d, is θ / (x + d).
    columns += [t.sign * slopes[t] * (1 / _shifted(t, x[t.variable], shifts[t.offset])) for t in form.offsets]
    return np.stack([np.ones(len(columns[0])), *columns], axis=1)


def solve(form: Form, theta: Vector, variable: str, known: Mapping[str, float], log_response: float) -> float:
    """The variable that gives ln y, the others being known; NaN where its coefficient is zero."""
    shifts = _shifts(form, theta)
    rest, wanted, slope = theta[0], form.terms[0], 0.0
    for coefficient, term in zip(theta[1:], form.terms, strict=False):
        if term.variable == variable:
            wanted, slope = term, term.sign * coefficient
        else:
            rest += (
                term.sign * coefficient * float(term_value(term, known[term.variable], shifts.get(term.offset, 0.0)))
            )
    if not slope:
        return math.nan
    g, shift = (log_response - rest) / slope, shifts.get(wanted.offset, 0.0)
    if wanted.scale.startswith("log"):
        g = math.exp(min(g, _MOST_LOG))
    if wanted.scale == "log-log2":
        g = 2.0 ** min(g, 1000.0)
    return 1 + shift - g if wanted.falls else g - shift


def direction(form: Form, theta: Vector, variable: str) -> float:
    """The slope of ln y along a variable as its term sees it: positive where y grows with the variable."""
    i = form.variables.index(variable)
    term = form.terms[i]
    return float(theta[1 + i]) * term.sign * (-1 if term.falls else 1)


def term_value(term: Term, x: Vector | float, shift: float = 0.0) -> Vector:
    """A term's g of its variable, of any shape."""
    x = _shifted(term, x, shift)
    if not term.scale.startswith("log"):
        return x
    return np.log(np.log2(x)) if term.scale == "log-log2" else np.log(x)


def has_numbers(form: Form, theta: Vector) -> bool:
    """Whether the constant can be reported: an offset far beyond the data drives C to nothing, or beyond all."""
    return not form.logarithmic or abs(float(theta[0])) <= _MOST_LOG


def natural(form: Form, theta: Vector) -> Vector:
    """θ as it is reported: C in the place of ln C."""
    return np.array([math.exp(theta[0]) if form.logarithmic else theta[0], *theta[1:]])


def internal(form: Form, values: Vector) -> Vector:
    """The reverse of `natural`."""
    return np.array([math.log(values[0]) if form.logarithmic else values[0], *values[1:]])


def _summands(form: Form, theta: Vector, x: Mapping[str, Vector]) -> list[Vector]:
    """Each term's ± g, (n,)."""
    shifts = _shifts(form, theta)
    return [t.sign * term_value(t, x[t.variable], shifts.get(t.offset, 0.0)) for t in form.terms]


def _shifts(form: Form, theta: Vector) -> dict[str, float]:
    """Offset to its value."""
    return dict(zip((t.offset for t in form.offsets), theta[1 + len(form.terms) :], strict=True))


def _shifted(term: Term, x: Vector | float, shift: float) -> Vector:
    """What is under a term's logarithm: x + d, or 1 − x + d."""
    x = np.asarray(x, float)
    return (1 - x if term.falls else x) + shift
