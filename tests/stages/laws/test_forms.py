"""Forms: every one is whole, its gradient and inverse are its own, and printed coefficients give printed numbers."""

import math

import numpy as np
import pytest

from qarat.ground.errors import UserError
from qarat.stages.laws.forms import FORMS, catalog
from qarat.stages.laws.forms.base import VARIABLES, Form, Vector

X = {
    "size": np.array([1e8, 7e9, 3e10]),
    "tokens": np.array([1e11, 2e12, 5e12]),
    "ratio": np.array([0.5, 0.9, 0.99]),
    "block": np.array([16.0, 64.0, 512.0]),
    "bits": np.array([2.0, 4.25, 8.0]),
}


def some_theta(form: Form) -> Vector:
    return np.random.default_rng(0).uniform(0.3, 1.5, len(form.names))


def test_the_forms_there_are() -> None:
    assert set(FORMS.names()) == {
        "bits-only",
        "block-power",
        "group-size",
        "high-share",
        "high-share-block",
        "post-training",
        "size-share",
        "strong",
        "undertraining",
        "weak",
        "weak-tokens",
    }
    with pytest.raises(UserError, match="did you mean strong"):
        FORMS.load("stong")


@pytest.mark.parametrize("name", FORMS.names())
def test_a_form_says_all_of_itself(name: str) -> None:
    form = catalog().forms[name]
    assert len(set(form.names)) == len(form.names)
    assert {*form.variables, *form.by, *form.needs} <= set(VARIABLES)
    assert form.points > len(form.names)
    assert form.source
    for published in form.published:
        assert set(published.values) == set(form.names)
        assert set(published.group) == set(form.by)


@pytest.mark.parametrize("name", FORMS.names())
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    form, step = FORMS.load(name), 1e-6
    theta = some_theta(form)
    gradient = form.gradient(theta, X)
    for i in range(len(theta)):
        up, down = theta.copy(), theta.copy()
        up[i] += step
        down[i] -= step
        numeric = (form.log_response(up, X) - form.log_response(down, X)) / (2 * step)
        np.testing.assert_allclose(gradient[:, i], numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FORMS.names())
def test_solving_for_a_variable_gives_it_back(name: str) -> None:
    form = FORMS.load(name)
    theta = some_theta(form)
    for row in range(3):
        known = {v: float(x[row]) for v, x in X.items()}
        log = float(form.log_response(theta, {v: x[[row]] for v, x in X.items()})[0])
        for variable in form.variables:
            others = {v: x for v, x in known.items() if v != variable}
            assert form.solve(theta, variable, others, log) == pytest.approx(known[variable], rel=1e-9)


@pytest.mark.parametrize("name", FORMS.names())
def test_reported_values_are_the_fitted_ones(name: str) -> None:
    form = FORMS.load(name)
    theta = some_theta(form)
    np.testing.assert_allclose(form.internal(form.natural(theta)), theta)
    assert form.natural(theta)[0] == (math.exp(theta[0]) if form.logarithmic else theta[0])


def respond(name: str, published: int, **known: float) -> float:
    form = FORMS.load(name)
    values = form.published[published].values
    theta = form.internal(np.array([values[n] for n in form.names]))
    return float(np.exp(form.log_response(theta, {v: np.array([x]) for v, x in known.items()})[0]))


def test_printed_coefficients_give_the_numbers_of_their_papers() -> None:
    # Ouyang et al. print 0.2 for 7B, 4 bits and 4.51 T tokens; their rounded coefficients give 0.22.
    assert respond("undertraining", 0, size=7e9, tokens=4.51e12, bits=4) == pytest.approx(0.22, abs=0.005)
    # Kumar et al., with the offset's sign as the digest infers it.
    assert respond("post-training", 0, size=220e6, tokens=26e9, bits=4) == pytest.approx(0.054, abs=0.001)
    # Law 2 at block 16 and 512, 7B at 0.5: decoded points 1.09 and 6.24 %.
    assert respond("block-power", 0, block=16) == pytest.approx(1.29, abs=0.01)
    assert respond("block-power", 0, block=512) == pytest.approx(3.90, abs=0.01)
    # Law 1 at 5 %: nothing need stay high from 125 billion parameters on.
    assert respond("size-share", 0, ratio=1.0) == pytest.approx(math.exp(4.83))
