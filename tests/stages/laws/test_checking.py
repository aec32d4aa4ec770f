"""Checking: a law beside rows that it has not seen, by loss and by ratio."""

import math
from collections.abc import Callable

import msgspec
import pytest

from qarat.ground.errors import UserError
from qarat.stages.laws.checking import check_law
from qarat.stages.laws.fitting import fit_law
from qarat.stages.laws.prediction import published_law
from qarat.stages.laws.tables import Table, load_table, narrow

MakeTable = Callable[..., Table]
WEAK = {"C": 130.0, "A": 4.5, "γ_N": 0.49}
LARGER = {"size": (1e11, 3e11), "ratio": (0.6, 0.8)}


def test_the_law_that_made_the_rows_is_off_by_nothing(make_table: MakeTable) -> None:
    law = fit_law(make_table("weak", WEAK), "weak", draws=0)
    check = check_law(law, make_table("weak", WEAK, **LARGER))
    assert (check.variable, len(check.rows)) == ("loss", 4)
    assert check.error == pytest.approx(0, abs=1e-4)
    assert all(row.outside and row.outside[0].startswith("size ") for row in check.rows)
    assert check.notes == ()


def test_what_a_loss_is_off_by_is_its_share_of_the_measured_one(make_table: MakeTable) -> None:
    law = fit_law(make_table("weak", WEAK), "weak", draws=0)
    larger = make_table("weak", WEAK, **LARGER)
    doubled = [msgspec.structs.replace(r, value=2 * r.value) for r in larger.rows]
    tiny = msgspec.structs.replace(larger.rows[0], value=1e-5, standard_error=1e-3)
    check = check_law(law, msgspec.structs.replace(larger, rows=(*doubled, tiny)))
    assert [row.off("loss") for row in check.rows[:4]] == pytest.approx([-0.5] * 4, abs=1e-4)
    assert check.rows[4].near_zero
    assert check.error == pytest.approx(0.5, abs=1e-4)  # without the row near zero, of which a share says nothing


def test_a_table_of_budgets_is_checked_by_its_ratios(make_table: MakeTable) -> None:
    law = fit_law(make_table("weak", WEAK), "weak", draws=0)
    larger = make_table("weak", WEAK, **LARGER)
    less = [msgspec.structs.replace(r, ratio=(r.ratio or 0) - 0.05) for r in larger.rows]
    check = check_law(law, msgspec.structs.replace(larger, rows=tuple(less)), variable="ratio")
    assert [row.off("ratio") for row in check.rows] == pytest.approx([0.05] * 4, abs=1e-4)
    assert check.error == pytest.approx(0.05, abs=1e-4)


def test_law_1_is_checked_by_ratios_and_what_it_was_not_fitted_for_is_named() -> None:
    law = published_law("size-share")
    table = load_table("fig6")
    check = check_law(law, table)
    assert (check.variable, len(check.rows)) == ("ratio", len(table.rows))
    first = check.rows[0]
    expected = 1 - (math.log(0.5) - 4.83) / -11.68
    assert (first.measured, first.predicted) == (0.56, pytest.approx(expected))
    five = msgspec.structs.replace(law, fits=law.fits[:1])
    check = check_law(five, table)
    assert len(check.rows) == 6
    assert any(note.startswith("10 rows not checked (Qwen1.5-0.5B, ") for note in check.notes)
    with pytest.raises(UserError, match=r"fitted for these values alone: loss 0\.04879"):
        check_law(five, narrow(table, ["value>6"]))


def test_intervals_of_a_measurement_go_with_the_rows(make_table: MakeTable) -> None:
    law = fit_law(make_table("weak", WEAK, noise=0.15), "weak", method="ols", draws=100)
    fresh = make_table("weak", WEAK, noise=0.15, seed=9, size=(5e8, 2e10), ratio=(0.55, 0.65, 0.75, 0.85, 0.95))
    rows = check_law(law, fresh).rows
    assert sum(row.interval[0] <= row.measured <= row.interval[1] for row in rows) >= 9
    assert not any(row.outside for row in rows)


def test_rows_that_were_fitted_or_are_of_another_kind_are_named(make_table: MakeTable) -> None:
    table = msgspec.structs.replace(make_table("weak", WEAK), how="counted with embeddings")
    law = fit_law(table, "weak", draws=0)
    check = check_law(law, table)
    assert "is no test of it" in check.notes[0]
    assert all(row.fitted for row in check.rows)
    assert math.isnan(check.error)
    rows = [msgspec.structs.replace(r, format="int8") for r in table.rows]
    other = msgspec.structs.replace(table, rows=tuple(rows), how="counted without")
    assert check_law(law, other).notes == (
        "format differs: the law has 'mxint4', these rows 'int8'",
        "how differs: the law has 'counted with embeddings', these rows 'counted without'",
    )


@pytest.mark.parametrize(("form", "asked"), [("weak", "loss"), ("weak", "ratio"), ("size-share", "ratio")])
def test_rows_that_were_fitted_count_in_no_mean(form: str, asked: str, make_table: MakeTable) -> None:
    table = load_table("fig6") if form == "size-share" else make_table("weak", WEAK)
    unseen = table.rows[:2]
    law = fit_law(msgspec.structs.replace(table, rows=table.rows[2:]), form, draws=0)
    doubled = tuple(msgspec.structs.replace(r, value=r.value * (1 + (form == "weak"))) for r in unseen)
    part = msgspec.structs.replace(table, rows=(*table.rows[2:7], *doubled))
    check = check_law(law, part, variable=asked)
    assert check.notes[0] == f"5 of {len(check.rows)} rows are among those the law was fitted to: left out of the mean"
    alone = check_law(law, msgspec.structs.replace(table, rows=doubled), variable=asked)
    assert check.error == alone.error
    assert not any(row.fitted for row in alone.rows)


def test_a_row_is_asked_of_the_group_that_its_ratio_is_near(make_table: MakeTable) -> None:
    blocks = (16.0, 32.0, 64.0, 128.0, 256.0)
    table = make_table("strong", {**WEAK, "γ_c": 0.5, "d": 0.0}, size=(1e9,), ratio=(0.5, 0.9), block=blocks)
    rows = [msgspec.structs.replace(r, ratio=(r.ratio or 0) + 0.005 * (r.block == 64)) for r in table.rows]
    law = fit_law(msgspec.structs.replace(table, rows=tuple(r for r in rows if r.block != 256)), "block-power", draws=0)
    check = check_law(law, msgspec.structs.replace(table, rows=tuple(rows)))
    assert [(row.known["ratio"], row.fitted) for row in check.rows] == [
        (ratio, block != 256) for ratio in (0.5, 0.9) for block in blocks
    ]
    far = [msgspec.structs.replace(r, ratio=0.7) for r in rows]
    with pytest.raises(UserError, match="fitted for these values alone"):
        check_law(law, msgspec.structs.replace(table, rows=tuple(far)))


def test_the_defects_of_the_laws_data_and_of_the_rows_are_named(make_table: MakeTable) -> None:
    table = msgspec.structs.replace(make_table("weak", WEAK), defects=("both", "bounds have no row"))
    other = msgspec.structs.replace(make_table("weak", WEAK, **LARGER), defects=("both", "two decimals"))
    notes = check_law(fit_law(table, "weak", draws=0), other).notes
    assert notes == ("the law's data: both", "the law's data: bounds have no row", "these rows: two decimals")


@pytest.mark.parametrize(
    ("table", "form", "asked", "says"),
    [
        ("t9", "", "", "accuracy: no form models that"),
        ("t1", "strong", "", "strong needs block"),
        ("t1", "bits-only", "", "this law has no form 'bits-only'"),
        ("t1", "stong", "", "did you mean strong"),
        ("t1", "", "block", "weak does not answer with 'block'"),
    ],
)
def test_what_cannot_be_checked(table: str, form: str, asked: str, says: str) -> None:
    law = fit_law(load_table("t1"), "weak", draws=0)
    with pytest.raises(UserError, match=says):
        check_law(law, load_table(table), form, asked)


def test_of_several_forms_without_a_best_none_is_taken() -> None:
    law, other = fit_law(load_table("t1"), "weak"), fit_law(load_table("fig8"), "block-power")
    law = msgspec.structs.replace(law, fits=(*other.fits, *law.fits), best="")
    with pytest.raises(UserError, match="several forms and no best one; choose with `form`"):
        check_law(law, load_table("t1"))
