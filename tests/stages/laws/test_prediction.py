"""Prediction: every question of every form, intervals, domains, and questions that make no sense."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from qarat.ground.errors import UserError
from qarat.stages.laws.fitting import fit_law
from qarat.stages.laws.prediction import predict, published_law, published_names
from qarat.stages.laws.tables import Table, load_table
from qarat.values.records.law import Law

MakeTable = Callable[..., Table]
WEAK = {"C": 130.0, "A": 4.5, "γ_N": 0.49}
STRONG = {**WEAK, "γ_c": 0.5, "d": 20.0}


@pytest.fixture
def weak(make_table: MakeTable) -> Law:
    return fit_law(make_table("weak", WEAK, noise=0.15), "weak", method="ols", draws=100)


def exact(make_table: MakeTable, form: str, values: dict[str, float], **grid: Any) -> Law:
    return fit_law(make_table(form, values, **grid), form, draws=0)


def test_the_questions_of_the_strong_law_are_each_others_inverse(make_table: MakeTable) -> None:
    law = exact(make_table, "strong", STRONG, block=(16.0, 32.0, 128.0, 512.0))
    point = {"size": 2e9, "ratio": 0.8, "block": 64.0}
    loss = predict(law, point)
    expected = 130 * math.exp(4.5 * 0.8) * 2e9**-0.49 * 84**0.5
    assert (loss.variable, loss.value) == ("loss", pytest.approx(expected, rel=1e-3))
    for asked in point:
        known = {k: v for k, v in point.items() if k != asked} | {"loss": loss.value}
        answer = predict(law, known)
        assert (answer.variable, answer.value) == (asked, pytest.approx(point[asked], rel=1e-6))
        assert answer.outside == ()


def test_law_1_answers_for_the_budgets_it_was_fitted_at() -> None:
    law = published_law("size-share")
    ten = predict(law, {"size": 7e9, "loss": math.log(1.1)})
    assert ten.variable == "ratio"
    assert ten.value == pytest.approx(1 - (math.log(7) - 3.35) / -11.27)
    back = predict(law, {"ratio": ten.value, "loss": math.log(1.1)})
    assert (back.variable, back.value) == ("size", pytest.approx(7e9))
    with pytest.raises(UserError, match=r"fitted for these values alone: loss 0\.04879 nats \(ppl\+5%\); "):
        predict(law, {"size": 7e9, "loss": 0.07})
    with pytest.raises(
        UserError, match=r"fitted for single values alone; give `loss` of one of these: loss 0\.04879 nats"
    ):
        predict(law, {"size": 7e9})


def test_law_2_answers_for_its_sizes_and_ratios() -> None:
    law = published_law("block-power")
    answer = predict(law, {"size": 7e9, "ratio": 0.9, "loss": math.log(1.2)})
    assert (answer.variable, answer.value) == ("block", pytest.approx((20 / 1.65) ** (1 / 0.62)))
    answer = predict(law, {"size": 14e9, "ratio": 0.9, "block": 64})
    assert answer.value == pytest.approx(math.log1p(64**0.63 / 100))
    assert "text and figure swap" in answer.notes[0]


def test_published_laws_have_no_intervals_and_say_what_they_are_of() -> None:
    trained = {"size": 2e8, "tokens": 2e10}
    questions: dict[str, dict[str, float]] = {
        "size-share": {"loss": math.log(1.05), "size": 2e9},
        "block-power": {"size": 7e9, "ratio": 0.5, "block": 64.0},
        "post-training": {**trained, "bits": 4.0},
        "undertraining": {**trained, "bits": 4.0},
    }
    for name in published_names():
        known = questions.get(name, {**trained, "block": 64.0})
        answer = predict(published_law(name), known)
        assert (answer.interval, answer.measured_interval, answer.outside) == ((), (), ())
        assert 0 < answer.value < 1
        assert answer.notes


def test_an_unknown_published_law() -> None:
    with pytest.raises(UserError, match="there is no published law 'weak'; known: block-power"):
        published_law("weak")


# ---------------------------------------------------------------- intervals and domains


def test_the_interval_of_a_measurement_is_wider_than_the_laws(weak: Law) -> None:
    answer = predict(weak, {"size": 1e9, "ratio": 0.8})
    assert answer.interval[0] < answer.value < answer.interval[1]
    assert answer.measured_interval[0] < answer.interval[0]
    assert answer.measured_interval[1] > answer.interval[1]
    assert predict(weak, {"size": 1e9, "ratio": 0.8}) == answer


def test_an_interval_of_measurements_covers_new_ones(weak: Law, make_table: MakeTable) -> None:
    fresh = make_table("weak", WEAK, noise=0.15, seed=99, size=(5e8, 2e10), ratio=(0.55, 0.65, 0.75, 0.85, 0.95))
    inside = 0
    for row in fresh.rows:
        low, high = predict(weak, {"size": row.size or 0, "ratio": row.ratio or 0}).measured_interval
        inside += low <= row.value <= high
    assert inside >= 9


def test_intervals_widen_away_from_the_data(weak: Law) -> None:
    near, far = (predict(weak, {"size": size, "ratio": 0.8}).interval for size in (2e9, 1e12))
    assert far[1] / far[0] > 1.3 * near[1] / near[0]


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({"size": 7e10, "ratio": 0.8}, "size 70B is 2.33 times above the largest fitted, 30B"),
        ({"size": 1e7, "ratio": 0.8}, "size 10M is 10 times below the smallest fitted, 100M"),
        ({"size": 1e9, "ratio": 0.3}, "ratio 0.3 is 0.2 below the smallest fitted, 0.5"),
    ],
)
def test_how_far_outside_the_domain(weak: Law, known: dict[str, float], says: str) -> None:
    assert predict(weak, known).outside == (says,)


def test_an_answer_outside_the_domain_is_outside_too(weak: Law) -> None:
    loss, ratio = predict(weak, {"size": 3e10, "loss": 0.002}).outside
    assert loss.startswith("loss 0.002 nats (ppl+0.2%) is ")
    assert ratio.startswith("ratio ")
    assert ratio.endswith("below the smallest fitted, 0.5")


def test_an_answer_that_cannot_be_is_cut_and_said(weak: Law) -> None:
    answer = predict(weak, {"size": 1e12, "loss": 5.0})
    assert answer.value == 1
    assert "which cannot be; 1 is the nearest that can" in answer.notes[0]
    assert answer.interval == (1, 1)


def test_a_budget_that_nothing_keeps_has_no_answer(weak: Law, make_table: MakeTable) -> None:
    answer = predict(weak, {"size": 1e8, "loss": 1e-6})
    assert (answer.none, answer.value) == ("no share keeps this budget", 0)
    assert (answer.interval, answer.measured_interval) == ((), ())
    assert "which cannot be" in answer.notes[0]
    assert predict(weak, {"size": 1e9, "loss": 0.3}).none == predict(weak, {"size": 1e12, "loss": 5.0}).none == ""
    law = exact(make_table, "strong", STRONG, block=(16.0, 32.0, 128.0, 512.0))
    answer = predict(law, {"size": 1e8, "ratio": 0.9, "loss": 0.01})
    assert (answer.none, answer.value) == ("no block size keeps this budget", 1)
    assert predict(law, {"size": 1e8, "ratio": 0.9, "block": 1.0}).value > 0.01
    bits = exact(make_table, "bits-only", {"C": 2.0, "b": 0.6}, bits=(3.0, 4.0, 6.0))
    answer = predict(bits, {"loss": 3.0})
    assert (answer.none, answer.value) == ("every number of bits keeps this budget", 0)


# ---------------------------------------------------------------- laws that run the other way


def noisy(make_table: MakeTable, gamma: float, noise: float) -> Law:
    values = {"C": 130.0 * 1e9 ** (gamma - 0.49), "A": 4.5, "γ_N": gamma}
    return fit_law(make_table("weak", values, noise=noise), "weak", method="ols", draws=100)


def test_where_the_loss_grows_with_size_the_answer_is_the_largest_n(make_table: MakeTable) -> None:
    answer = predict(noisy(make_table, -0.3, 0.05), {"ratio": 0.9, "loss": 0.3})
    assert answer.turned
    assert "the loss increase grows with size (γ_N = -0.3" in answer.notes[0]
    assert len(answer.interval) == 2
    usual = predict(noisy(make_table, 0.3, 0.05), {"ratio": 0.9, "loss": 0.3})
    assert not usual.turned
    assert not any("with size" in note for note in usual.notes)


def test_where_the_sign_is_open_there_is_no_interval(make_table: MakeTable) -> None:
    law = noisy(make_table, 0.0, 0.5)
    low, high = law.fits[0].parameters[2].interval
    assert low < 0 < high
    answer = predict(law, {"ratio": 0.9, "loss": 0.3})
    assert (answer.interval, answer.measured_interval) == ((), ())
    assert any("do not fix whether the loss increase falls or grows with size; γ_N is -" in n for n in answer.notes)
    assert len(predict(law, {"size": 1e9, "loss": 0.3}).interval) == 2  # the sign of A is sure
    assert len(predict(law, {"size": 1e9, "ratio": 0.9}).interval) == 2


def test_law_1_that_runs_the_other_way() -> None:
    law = published_law("size-share")
    fits = []
    for fit in law.fits:
        turned = [msgspec.structs.replace(p, value=abs(p.value)) for p in fit.parameters]
        fits.append(msgspec.structs.replace(fit, parameters=tuple(turned)))
    law = msgspec.structs.replace(law, fits=tuple(fits))
    size = predict(law, {"ratio": 0.9, "loss": math.log(1.1)})
    ratio = predict(law, {"size": 1e11, "loss": math.log(1.1)})
    assert (size.turned, ratio.turned) == (True, False)
    assert size.notes[0] == ratio.notes[0] == "in this fit N falls with ratio (k = 11.27), not grows"


# ---------------------------------------------------------------- values as they are listed


def test_a_group_may_be_named_as_it_is_listed(make_table: MakeTable) -> None:
    sizes = (3145728.0, 9437184.0)
    table = make_table("strong", {**STRONG, "d": 0.0}, size=sizes, ratio=(0.9,), block=(16.0, 32.0, 64.0, 128.0))
    law = fit_law(table, "block-power", draws=0)
    exact = predict(law, {"size": sizes[0], "ratio": 0.9, "block": 64.0})
    listed = predict(law, {"size": 3.15e6, "ratio": 0.9, "block": 64.0})
    assert listed == exact
    assert listed.known["size"] == sizes[0]  # what was fitted, not what was typed
    with pytest.raises(UserError, match=r"these values alone: size 3\.15M, ratio 0\.9; size 9\.44M, ratio 0\.9"):
        predict(law, {"size": 3.2e6, "ratio": 0.9, "block": 64.0})


def test_a_prediction_says_what_the_data_count(make_table: MakeTable) -> None:
    table = msgspec.structs.replace(make_table("weak", WEAK), how="size leaves the embeddings out")
    answer = predict(fit_law(table, "weak", draws=0), {"size": 7e9, "ratio": 0.9})
    assert "the law's data: size leaves the embeddings out" in answer.notes


# ---------------------------------------------------------------- questions that make no sense


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({"size": 1e9}, "weak takes all of `ratio`, `size`, `loss` but the one it answers with; `ratio`, `loss` lack"),
        (
            {"size": 1e9, "ratio": 0.8, "loss": 0.1},
            "the one of `ratio`, `size`, `loss` that is left out; leave one out",
        ),
        ({"size": 1e9, "ratio": 0.8, "block": 32}, "weak does not model `block`"),
        ({"size": 1e9, "ratio": 1.5}, "`ratio` 1.5 cannot be"),
        ({"size": 0.0, "ratio": 0.5}, "`size` 0 cannot be"),
        ({"size": 1e9, "loss": 0.0}, "`loss` 0 cannot be"),
    ],
)
def test_questions_are_checked(weak: Law, known: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        predict(weak, known)


def test_a_form_must_be_in_the_law(weak: Law) -> None:
    law = fit_law(load_table("t1"), draws=0)
    assert predict(law, {"size": 7e9, "ratio": 0.9}).form == law.best == "weak"
    assert predict(law, {"bits": 5}, "bits-only").form == "bits-only"
    with pytest.raises(UserError, match="no form 'strong': strong needs block"):
        predict(law, {"size": 7e9}, "strong")
    with pytest.raises(UserError, match="no form 'bits-only'; it has weak"):
        predict(weak, {"bits": 5}, "bits-only")
    with pytest.raises(UserError, match="several forms and no best one; choose with `form`: bits-only, weak"):
        predict(msgspec.structs.replace(law, best=""), {"size": 7e9, "ratio": 0.9})


def test_a_law_whose_parameters_are_not_the_forms_is_refused(weak: Law) -> None:
    fit = msgspec.structs.replace(weak.fits[0], parameters=weak.fits[0].parameters[:2])
    with pytest.raises(UserError, match="has the parameters C, A, not C, A, γ_N; fit it again"):
        predict(msgspec.structs.replace(weak, fits=(fit,)), {"size": 7e9, "ratio": 0.9})
