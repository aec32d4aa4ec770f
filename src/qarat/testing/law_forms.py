"""A form of a law keeps its promises: it says all of itself, and its gradient and inverse are its own."""

from __future__ import annotations

import numpy as np

from qarat.stages.laws.forms import Form
from qarat.stages.laws.forms.base import VARIABLES, Vector

POINTS = {
    "size": np.array([1e8, 7e9, 3e10]),
    "tokens": np.array([1e11, 2e12, 5e12]),
    "ratio": np.array([0.5, 0.9, 0.99]),
    "block": np.array([16.0, 64.0, 512.0]),
    "bits": np.array([2.0, 4.25, 8.0]),
}
"""Three models, by variable."""


def check_law_form(form: Form) -> None:
    """Check a form by itself.

    Raises:
        AssertionError: A name used twice, a variable that nothing measures, too few points to fit it, no source,
            printed coefficients of other names, or a gradient or inverse that is not that of the value.
    """
    assert len(set(form.names)) == len(form.names), f"two parameters of one name: {', '.join(form.names)}"
    unknown = {*form.variables, *form.by, *form.needs} - set(VARIABLES)
    assert not unknown, f"no data have {', '.join(sorted(unknown))}; known: {', '.join(VARIABLES)}"
    assert form.points > len(form.names), f"{form.points} points cannot tell {len(form.names)} parameters"
    assert form.source, "a form says where it is from"
    for published in form.published:
        assert set(published.values) == set(form.names), f"{published.name}: coefficients of other names"
        assert set(published.group) == set(form.by), f"{published.name}: of no group that the form is fitted in"
    theta = np.random.default_rng(0).uniform(0.3, 1.5, len(form.names))
    _check_gradient(form, theta)
    _check_inverse(form, theta)


def _check_gradient(form: Form, theta: Vector, step: float = 1e-6) -> None:
    gradient = form.gradient(theta, POINTS)
    for i, name in enumerate(form.names):
        up, down = theta.copy(), theta.copy()
        up[i] += step
        down[i] -= step
        numeric = (form.log_response(up, POINTS) - form.log_response(down, POINTS)) / (2 * step)
        np.testing.assert_allclose(gradient[:, i], numeric, rtol=1e-6, atol=1e-8, err_msg=f"gradient by {name}")


def _check_inverse(form: Form, theta: Vector) -> None:
    for row in range(3):
        point = {variable: float(values[row]) for variable, values in POINTS.items()}
        log = float(form.log_response(theta, {v: values[[row]] for v, values in POINTS.items()})[0])
        for variable in form.variables:
            others = {name: value for name, value in point.items() if name != variable}
            solved = form.solve(theta, variable, others, log)
            np.testing.assert_allclose(solved, point[variable], rtol=1e-9, err_msg=f"solved for {variable}")
