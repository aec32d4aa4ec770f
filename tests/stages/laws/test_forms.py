"""Forms: every one is whole, its gradient and inverse are its own, and printed coefficients give printed numbers."""

import math

import numpy as np
import pytest
from msgspec import structs

from qarat.ground.errors import UserError
from qarat.stages.laws.equations import Vector, internal, log_response, natural
from qarat.stages.laws.forms import FORMS, Form
from qarat.testing import check_law_form


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
def test_a_form_keeps_its_promises(name: str) -> None:
    check_law_form(FORMS.load(name))


def test_a_form_that_breaks_them_is_told_which() -> None:
    form = FORMS.load("weak")
    with pytest.raises(AssertionError, match="cannot tell"):
        check_law_form(structs.replace(form, points=1))
    with pytest.raises(AssertionError, match="where it is from"):
        check_law_form(structs.replace(form, source=""))
    twice = (*form.terms, form.terms[0])
    with pytest.raises(AssertionError, match="two parameters of one name"):
        check_law_form(structs.replace(form, terms=twice))


@pytest.mark.parametrize("name", FORMS.names())
def test_reported_values_are_the_fitted_ones(name: str) -> None:
    form = FORMS.load(name)
    theta = some_theta(form)
    np.testing.assert_allclose(internal(form, natural(form, theta)), theta)
    assert natural(form, theta)[0] == (math.exp(theta[0]) if form.logarithmic else theta[0])


def respond(name: str, published: int, **known: float) -> float:
    form = FORMS.load(name)
    values = form.published[published].values
    theta = internal(form, np.array([values[n] for n in form.names]))
    return float(np.exp(log_response(form, theta, {v: np.array([x]) for v, x in known.items()})[0]))


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
