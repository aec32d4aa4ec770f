"""Comparison: which form is the best, and that forms which say the same are one law."""

import math

import pytest

from qarat.stages.laws.comparison import compare_forms, with_left_out
from qarat.values.records.law import Fit, FittedPoint, Quality

ERRORS = (0.2, -0.1, 0.15, -0.25, 0.05, -0.05)  # of the simpler form on sizes left out, in the logarithm


def fit_of(form: str, errors: tuple[float, ...]) -> Fit:
    """Points of three sizes, all measured as 1, each predicted by a fit without its size."""
    points = tuple(
        FittedPoint(f"m{i}", {"size": 1e9 * (1 + i // 2)}, 1.0, 0.0, 1.0, (math.exp(error),), by_difference=False)
        for i, error in enumerate(errors)
    )
    return with_left_out(Fit(form, {}, (), "huber", {}, points=points, quality=(Quality(0.9, 0.1, (), 0.2),)))


@pytest.mark.parametrize("sign", [-1, 1])
def test_of_forms_that_say_the_same_the_simplest_is_best_whichever_is_nearer(sign: int) -> None:
    """As d of `high-share` grows it becomes `weak`; where a descent stops on the way differs between machines."""
    near = tuple(e + sign * 0.01 * math.copysign(1, e) for e in ERRORS)
    weak, high = fit_of("weak", ERRORS), fit_of("high-share", near)
    assert (high.quality[0].left_out_error[0] > weak.quality[0].left_out_error[0]) == (sign > 0)
    fits, best = compare_forms([high, weak])
    assert best == "weak"
    assert "as far off on sizes left out as high-share" in fits[1].notes[0]


def test_a_form_with_more_parameters_is_best_where_it_says_something_else() -> None:
    high = fit_of("high-share", tuple(e / 2 for e in ERRORS))
    fits, best = compare_forms([high, fit_of("weak", ERRORS)])
    assert best == "high-share"
    assert not any(fit.notes for fit in fits)
