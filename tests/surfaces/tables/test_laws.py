"""What the tables of laws say, and that they stay within their width."""

from __future__ import annotations

import math
from io import StringIO

import msgspec
import pytest
from rich.console import Console

from qarat.stages.laws.fitting import fit_law
from qarat.stages.laws.forms import FORMS, Catalog
from qarat.stages.laws.prediction import predict, published_law
from qarat.stages.laws.tables import load_table, narrow
from qarat.surfaces.tables.law_shares import shares
from qarat.surfaces.terminal import render
from qarat.values.records.law import Law


def show(*records: object) -> str:
    console = Console(file=StringIO(), width=100, no_color=True)
    console.print(render(*records))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= 100 for line in text.splitlines()), text
    return text


def compared() -> Law:
    return fit_law(load_table("t1"), method="ols", draws=100)


def test_forms_are_compared_and_the_best_ones_points_shown() -> None:
    text = show(compared())
    best = [line for line in text.splitlines() if line.rstrip().endswith("   best")]
    assert len(best) == 1
    assert best[0].split() == ["weak", "30", "0.968", "16.1", "19.2", "best"]
    assert text.count("Qwen1.5-0.5B") == 5  # the points of the best form alone
    assert "what these data cannot fit" in text
    assert "needs tokens" in text


def test_a_point_shows_how_far_it_is_off() -> None:
    rows = [line.split() for line in show(compared()).splitlines()]
    (row,) = [row for row in rows if row[:3] == ["Qwen1.5-7B", "0.9", "7B"]]
    measured, predicted, off, left_out = map(float, row[3:])
    assert measured == pytest.approx(math.log(12.44 / 10.74), abs=5e-5)
    assert off == pytest.approx(100 * (predicted / measured - 1), abs=0.1)
    assert left_out < off < -20  # predicted from the other sizes it is further off


def test_points_come_by_size_then_block_then_ratio() -> None:
    table = narrow(load_table("fig8"), ["block<=64"])
    law = fit_law(msgspec.structs.replace(table, rows=tuple(reversed(table.rows))), "strong", draws=0)
    rows = [line.split() for line in show(law).splitlines() if line.startswith("Qwen1.5")]
    places = [(float(size.rstrip("B")), float(block), float(ratio)) for _, ratio, size, block, *_ in rows]
    assert len(places) == 18
    assert places == sorted(places)


def test_what_each_size_allows_is_what_the_law_predicts() -> None:
    law = fit_law(load_table("t1"), "weak", method="ols", draws=100)
    found = shares(law)
    assert found is not None
    asked = predict(law, {"size": 4e9, "loss": math.log1p(0.1)})
    answer = found.within(10, {"size": 4e9})
    assert (answer.value, answer.interval, answer.turned) == (asked.value, asked.interval, asked.turned)
    text = show(law)
    assert "largest Q_r (95 % of the law) by weak" in text
    (row,) = [line for line in text.splitlines() if line.split()[:1] == ["4B"]]
    assert f"{asked.value:.4g} ({asked.interval[0]:.4g} to {asked.interval[1]:.4g})" in row
    fit = law.fits[0]
    slope = msgspec.structs.replace(fit.parameters[1], interval=(-1.0, 9.0))
    open_sign = msgspec.structs.replace(fit, parameters=(fit.parameters[0], slope, *fit.parameters[2:]))
    undecided = shares(msgspec.structs.replace(law, fits=(open_sign,)))
    assert undecided is not None
    assert undecided.within(10, {"size": 4e9}).interval == ()
    assert shares(fit_law(load_table("t1"), "bits-only", draws=0)) is None


def test_forms_say_where_printed_coefficients_come_from() -> None:
    text = " ".join(show(Catalog({n: FORMS.load(n) for n in ("post-training", "group-size")})).split())
    assert "fitted to size 30M to 220M, tokens 1.5B to 26B; GPTQ on OLMo-style models" in text
    assert text.count("fitted to size 74M to 595M, tokens 10B to 100B, block 32 to 256") == 3  # three different notes
    assert "the table's cells were scrambled" in text


def test_points_near_zero_are_listed() -> None:
    text = show(fit_law(load_table("t2"), "weak", standard_error=0.003, draws=0))
    assert "at or near zero, counted by difference over its error: Qwen1.5-32B, ratio 0.5, size 32B" in text
    assert "near 0" in text
    assert "-0.002442 ± 0.003" in text


def test_groups_are_named_by_what_they_hold_for() -> None:
    text = show(fit_law(load_table("fig6"), "size-share", draws=0))
    assert "loss 0.09531 nats (ppl+10%)" in text
    assert "N, 10⁹" in text


def test_a_published_law_shows_its_coefficients() -> None:
    text = show(published_law("post-training"))
    assert "1/γ_post" in text
    assert "1.693" in text
    assert "do not transfer" in text


def test_a_prediction_says_where_it_lies() -> None:
    law = compared()
    inside = show(predict(law, {"size": 7e9, "ratio": 0.9}))
    assert "loss increase" in inside
    assert "inside the fitted domain" in inside
    outside = show(predict(law, {"size": 7e10, "ratio": 0.9}))
    assert "outside the fitted domain: size 70B is 2.19 times above the largest fitted, 32B" in outside


def test_a_prediction_names_the_end_that_it_is() -> None:
    law = fit_law(load_table("t1"), "weak", method="ols", draws=100)
    known = {"ratio": 0.9, "loss": 0.05}
    answer = predict(law, known)
    assert "smallest N" in show(answer)
    assert "largest N" in show(msgspec.structs.replace(answer, turned=True))
    undecided = show(msgspec.structs.replace(answer, interval=(), measured_interval=(), value=3.2e21))
    assert "3.2e+21" in undecided
    assert "without draws" not in undecided


def test_forms_that_cannot_be_compared_are_named() -> None:
    law = compared()
    fits = [
        msgspec.structs.replace(f, quality=(msgspec.structs.replace(f.quality[0], left_out_error=()),))
        if f.form == "weak"
        else f
        for f in law.fits
    ]
    text = " ".join(show(msgspec.structs.replace(law, fits=tuple(fits), best="")).split())
    assert "no form is the best: without some size there are too few data for weak, so no error on" in text


def test_text_from_a_table_is_never_markup() -> None:
    table = narrow(load_table("t1"), ["model=Qwen1.5-7B"])
    hostile = msgspec.structs.replace(table, title="[red]\x1b[31m title", defects=("[bold]x",))
    text = show(hostile)
    assert "[red]\\x1b[31m title" in text
    assert "[bold]x" in text
    law = fit_law(load_table("t1"), "weak", draws=0)
    assert "[red]\\x1b" in show(msgspec.structs.replace(law, data="[red]\x1b"))
    assert render(law) is not None
