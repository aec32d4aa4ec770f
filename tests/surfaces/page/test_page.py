"""The page without a browser: its figures, its words, its files, and what it says of what is not there."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import altair as alt
import msgspec
import pytest
import torch
from safetensors.torch import load_file

from qarat.ground.errors import UserError
from qarat.jobs.folder import read_manifest
from qarat.model.opening import open_model
from qarat.stages.laws.fitting import fit_law
from qarat.stages.laws.prediction import predict
from qarat.stages.laws.tables import Table, load_table, narrow
from qarat.surfaces.page import write_report
from qarat.surfaces.page.document import assemble, document, part_html
from qarat.surfaces.page.figures.base import Figure, log_ticks
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.page.figures.intervals import Arm, intervals
from qarat.surfaces.page.figures.law_reach import law_reach
from qarat.surfaces.page.figures.law_sections import law_along, law_fit, law_residuals
from qarat.surfaces.page.figures.losses import recovery
from qarat.surfaces.page.figures.streams import laid_over, profile
from qarat.surfaces.page.parts import Folded, Titled, figures_in
from qarat.surfaces.page.remedies import remedies, rewritten_streams
from qarat.surfaces.page.rendering import DARK, LIGHT, to_svg, vega_config
from qarat.surfaces.page.sections import PARTS
from qarat.surfaces.page.story import About, Story, gather, portable
from qarat.surfaces.page.verdict import facts, next_lines, scheme_words, subject, verdict
from qarat.surfaces.tables.data import table, texts
from qarat.surfaces.tables.scores import show_continuations
from qarat.values.formats import FORMATS
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan
from qarat.values.records.files import Record, decode_record, encode_record
from qarat.values.records.law import Law
from qarat.values.records.origin import Provenance
from qarat.values.records.prices import Menu, Protection
from qarat.values.records.rewrites import FittedScales, Rewrites, StreamRewrite
from qarat.values.records.scores import Continuations, Divergence
from qarat.values.records.streams import ActivationStats

SECTIONS = ["cost", "words", "spikes", "recovery", "plan", "law", "provenance"]
FIGURES = {"outcome", "divergence", "spike-map", "profile-1-down_in", "grids-1-down_in", "recovery", "plan"}
LAW_FIGURES = {"law-ratio", "law-reach", "law-fit", "law-residuals"}


@pytest.fixture(scope="module")
def story(tiny_run: Path, law_file: Path) -> Story:
    return gather([tiny_run, law_file])


@pytest.fixture(scope="module")
def figures(story: Story) -> dict[str, Figure]:
    return figures_of(story)


def figures_of(story: Story) -> dict[str, Figure]:
    return {figure.key: figure for section in assemble(story) for figure in figures_in(section.parts)}


def rows_of(figure: Figure) -> list[dict[str, object]]:
    """Every row of every data set of a definition, once where several layers draw it."""
    rows = [row for rows in figure.definition()["datasets"].values() for row in rows]
    return list({json.dumps(row): row for row in rows}.values())


# ---------------------------------------------------------------- figures


def test_every_figure_is_there_valid_and_free_of_colours(figures: dict[str, Figure]) -> None:
    assert figures.keys() >= FIGURES | LAW_FIGURES
    for figure in figures.values():
        definition = figure.definition()
        alt.LayerChart.from_dict(definition)  # raises where the schema of Vega-Lite does not allow it
        text = json.dumps(definition)
        assert "http" not in text
        assert not re.search(r'"#[0-9a-fA-F]{3,8}"', text)
        assert figure.table.rows
        assert figure.caption.endswith(".")
        # A name of a style that no theme knows would be drawn in Vega's own colours.
        styles = set(re.findall(r'"style": "([^"]+)"', text)) - {"cell"}
        assert styles <= vega_config(LIGHT, "Arial")["style"].keys()


def test_what_is_shown_on_hover_is_a_row_of_the_table(figures: dict[str, Figure]) -> None:
    shown = figures["spike-map"].table
    cells = [row for row in rows_of(figures["spike-map"]) if "stream" in row]
    assert [tuple(row[c] for c in shown.names) for row in cells] == list(shown.rows)
    assert {"token", "position", "channel", "value", "r", "maximum"} <= set(shown.names)


def test_the_map_has_every_stream_and_outlines_the_spike(figures: dict[str, Figure], story: Story) -> None:
    stats = story.one(ActivationStats)
    assert stats is not None
    cells = {row["stream"]: row for row in rows_of(figures["spike-map"])}
    assert len(cells) == len(stats.streams)
    spike = stats.streams["model.layers.1.down_in"]
    assert cells["1.down_in"]["ratio"] == spike.ratio
    assert cells["1.down_in"]["flagged"]
    assert cells["1.down_in"]["position"] == str(spike.peaks[0].position)


def test_the_profile_is_the_record_s(figures: dict[str, Figure], story: Story) -> None:
    stats = story.one(ActivationStats)
    assert stats is not None
    spike = stats.streams["model.layers.1.down_in"]
    line = [row["maximum"] for row in rows_of(figures["profile-1-down_in"]) if "maximum" in row]
    assert line == spike.arrays["position_maxima"].tolist()
    means = [row for row in figures["profile-1-down_in"].table.rows if row[0] == "mean"]
    assert len(means) == stats.length


def test_a_long_window_s_profile_is_drawn_by_the_largest_of_neighbours(story: Story) -> None:
    stats = story.one(ActivationStats)
    assert stats is not None
    spike = stats.streams["model.layers.1.down_in"]
    long = torch.ones(4096)
    long[1001] = 7.0
    figure = profile(msgspec.structs.replace(spike, arrays={"position_maxima": long}), FORMATS["int8"])
    line = [(row["position"], row["maximum"]) for row in rows_of(figure) if "maximum" in row]
    assert len(line) == 1024
    assert (1000, 7.0) in line


def test_grids_count_what_becomes_zero(story: Story) -> None:
    stats = story.one(ActivationStats)
    assert stats is not None
    edges = stats.edges
    counts = torch.zeros(len(edges) - 1, dtype=torch.int64)
    for magnitude, count in ((0.25, 30), (2.0, 60), (127.0, 10)):
        counts[int(torch.searchsorted(edges, torch.tensor(magnitude), right=True)) - 1] = count
    spike = stats.streams["model.layers.1.down_in"]
    stream = msgspec.structs.replace(spike, maximum=127.0, typical_maximum=2.0, arrays={"histogram": counts})
    int8, e4m3, alone = laid_over(stream, edges, ["int8", "e4m3"])
    assert int8.scale == 1.0
    assert int8.zeros == pytest.approx(0.3)  # 0.25 is below half a step, 2 is two steps
    assert e4m3.zeros == alone.zeros == 0.0
    assert alone.scale == pytest.approx(2 / 127)
    assert e4m3.snr_db > int8.snr_db


def test_what_quantizing_does_to_predictions_is_shown_beside_float(story: Story) -> None:
    naive, plan = story.all(Divergence)
    often, along, departs, folded = PARTS["words"](story)
    assert isinstance(often, Titled)
    assert [row[:2] for row in often.table.rows] == [(d.label, f"{100 * d.agreement[0]:.2f}") for d in (naive, plan)]
    assert isinstance(along, Figure)
    drawn = {(row["group"], row["x"]): row["y"] for row in rows_of(along) if "x" in row}
    assert drawn == {(d.label, b.last): b.divergence for d in (naive, plan) for b in d.positions}
    assert isinstance(departs, Titled)
    (_, behind, came, ours, theirs), worst = departs.table.rows[0], plan.worst[0]
    assert behind.startswith("…")
    assert came.strip() == worst.token.strip()
    for cell, probability in ((ours, worst.float_probability), (theirs, worst.probability)):
        assert cell.endswith(f"({100 * probability:.0f} %)")
    assert isinstance(folded, Folded)  # what one prompt shows is chance
    (fact,) = [fact for fact in facts(story) if fact[0] == "float's likeliest token kept"]
    assert fact[1] == f"{100 * plan.agreement[0]:.1f} %"
    assert fact[2].endswith(f"naive: {100 * naive.agreement[0]:.1f} %")


def test_a_divergence_alone_has_a_page(story: Story) -> None:
    _, plan = story.all(Divergence)
    alone = Story((plan,))
    assert [section.key for section in assemble(alone)] == ["words", "provenance"]
    assert verdict(alone).headline.startswith(f"On {100 * plan.agreement[0]:.1f} % of tokens, float's likeliest")


def test_the_recovery_curve_has_every_trial_and_the_budget(story: Story) -> None:
    sweep, plan = story.one(Protection), story.one(Plan)
    assert sweep is not None
    assert plan is not None
    figure = recovery(sweep, plan)
    assert len(figure.table.rows) == len(sweep.trials)
    kept = sum(a.site.parameters for a in story.protected)
    assert 100 * kept / sum(s.parameters for s in plan.sites) in [row.get("x") for row in rows_of(figure)]
    assert (sweep.budget_nats, f"budget {sweep.budget}") in [
        (row.get("at"), row.get("name")) for row in rows_of(figure)
    ]


def test_intervals_keep_what_cannot_be_drawn_in_the_table() -> None:
    arms = [Arm("first", 0.01, 0.005, 0.015), Arm("overflowed", math.inf), Arm("one source", 0.02)]
    figure = intervals("key", "Title", "Caption.", arms, unit="nats")
    assert [row[0] for row in figure.table.rows] == ["first", "overflowed", "one source"]
    assert [row[2] for row in figure.table.rows] == ["+0.0050 to +0.0150", "n/a", "n/a"]
    drawn = [(row["row"], row["arm"]) for row in rows_of(figure)]
    assert drawn == [(0, "first"), (1, "one source")]  # which labels and values beside the marks go by


def test_a_logarithmic_curve_leaves_out_what_has_no_logarithm() -> None:
    dots = (Dot(1, 0.1, y_range=(-0.1, 0.3), label="a"), Dot(2, -0.1, label="b"), Dot(3, math.nan, label="c"))
    figure = curve("key", "Title", "Caption.", [Series("s", dots)], Axis("k"), Axis("loss", log=True), noun="site")
    assert [row[0] for row in figure.table.rows] == ["a", "b", "c"]
    (drawn,) = [row for row in rows_of(figure) if row.get("label")]
    assert (drawn["label"], drawn["y_high"]) == ("a", 0.3)
    assert isinstance(drawn["y_low"], float)
    assert 0 < drawn["y_low"] < 0.1


def test_labels_that_would_lie_one_on_the_other_share_a_place() -> None:
    dots = (Dot(8, 1e-4, label="a"), Dot(8, 1.1e-4, label="b"), Dot(8, 1e-2, label="c"), Dot(16, 1e-4, label="d"))
    figure = curve("key", "T", "C.", [Series("s", dots, named=True)], Axis("bits"), Axis("loss", log=True))
    assert [row["label"] for row in figure.definition()["datasets"]["named"]] == ["a, b", "c", "d"]
    assert [row[0] for row in figure.table.rows] == ["a", "b", "c", "d"]


def test_labels_stand_off_marks_and_off_each_other() -> None:
    """Right and above unless something is there; the bound's name where no bar crosses it."""
    free = Series("free", (Dot(0.5, 0.5, label="plan"),), named=True)
    taken = Series("taken", tuple(Dot(0.5 + step / 100, 0.53) for step in (2, 5, 8)), line=False)
    ends = Series("ends", (Dot(0, 0), Dot(1, 1, y_range=(0.7, 1.0))), line=False)

    def drawn(*series: Series) -> dict[str, list[dict[str, Any]]]:
        figure = curve("key", "T", "C.", [*series, ends], Axis("x"), Axis("y"), limits=[(0.75, "budget")])
        return figure.definition()["datasets"]

    def places(*series: Series) -> list[tuple[str, int, int]]:
        return [(row["align"], row["dx"], row["dy"]) for row in drawn(*series)["named"]]

    assert places(free) == [("left", 9, -9)]
    assert places(free, taken) == [("right", -9, -9)]
    (bound,) = drawn(free)["limit"]
    assert (bound["at"], bound["name"], bound["along"], bound["align"]) == (0.75, "budget", 0.75, "center")
    twice = Series("twice", (Dot(0.5, 0.5, label="one"), Dot(0.5, 0.47, label="another")), named=True, line=False)
    first, second = places(twice)
    assert first == ("left", 9, -9)
    assert second == ("right", -9, -9)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 12, [1, 2, 5, 10]),
        (0.3, 120, [0.3, 1, 3, 10, 30, 100]),
        (3e-4, 0.03, [5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02]),
        (1e-6, 1e6, [1e-6, 1e-4, 1e-2, 1, 100, 1e4, 1e6]),
        (0, 1, []),
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == ticks


def test_a_table_has_a_cell_for_every_column() -> None:
    with pytest.raises(ValueError, match="2 columns a, b"):
        table(texts("a", "b"), [("1",)])


def test_themes_have_the_same_names() -> None:
    light, dark = (vega_config(colours, "Arial") for colours in (LIGHT, DARK))
    assert light["style"].keys() == dark["style"].keys()
    categories = light["range"]["category"]
    assert len(categories) == len(dark["range"]["category"]) == len({*categories})


def test_laws_of_the_paper_are_drawn() -> None:
    shares = fit_law(load_table("fig6"), "size-share", draws=0)
    figure = law_reach(shares)
    assert figure is not None
    assert {row[0] for row in figure.table.rows} == {"ppl+5%", "ppl+10%", "ppl+20%"}
    assert law_along(shares, "ratio") is None
    blocks = law_along(fit_law(load_table("fig8"), "block-power", draws=0), "block")
    assert blocks is not None
    assert len({row[0] for row in blocks.table.rows}) == 6  # two sizes, three ratios


def test_ratios_that_nearly_agree_are_one_line_along_the_block_size() -> None:
    """A search's ratios differ a little from block size to block size."""
    table = narrow(load_table("fig8"), ["block<=512"])
    near = [msgspec.structs.replace(r, ratio=(r.ratio or 0) + 1e-5 * (r.block or 0) / 8) for r in table.rows]
    figure = law_along(fit_law(msgspec.structs.replace(table, rows=tuple(near)), "strong", draws=0), "block")
    assert figure is not None
    assert len({row[0] for row in figure.table.rows}) == 6
    assert any("ratio 0.9" in row[0] for row in figure.table.rows)


def side_by_side(table: Table, *forms: str) -> Law:
    """A law of a few forms; all there are would take long to fit."""
    laws = [fit_law(table, form, draws=0) for form in forms]
    return msgspec.structs.replace(laws[0], fits=tuple(fit for law in laws for fit in law.fits))


def test_figures_take_a_form_that_has_their_variable() -> None:
    law = side_by_side(narrow(load_table("fig8"), ["block<=128"]), "weak", "strong", "bits-only", "block-power")
    for best in ("weak", "bits-only"):
        law = msgspec.structs.replace(law, best=best)
        other = "weak" if best == "weak" else "strong"  # of the forms with the ratio, the closest to the points
        for figure, form in ((law_along(law, "block"), "strong"), (law_along(law, "ratio"), other)):
            assert figure is not None
            assert f"the fitted form {form}, " in figure.caption
        assert f"Of the form {best}" in law_fit(law).caption
        reach = law_reach(law)
        assert reach is not None
        assert f"the fitted form {other} allows" in reach.caption
    law = msgspec.structs.replace(law, fits=tuple(f for f in law.fits if f.form in ("bits-only", "block-power")))
    figure = law_along(law, "block")
    assert figure is not None
    assert "the fitted form block-power, " in figure.caption
    assert len({row[0] for row in figure.table.rows}) == 6  # two sizes, three ratios
    assert law_along(law, "ratio") is law_reach(law) is None


def reached(law: Law) -> dict[tuple[str, str], str]:
    """Series and model to the share that is drawn."""
    figure = law_reach(law)
    assert figure is not None
    share = figure.table.names.index("low share")
    return {(row[0], row[1]): row[share] for row in figure.table.rows}


def test_the_law_s_shares_stand_beside_measured_ones() -> None:
    law = fit_law(load_table("t1"), "weak", draws=100)
    drawn = reached(law)
    loss = {p.variables["ratio"]: p.measured for p in law.fits[0].points if p.model == "Qwen1.5-7B"}
    assert loss[0.5] < math.log(1.05) < loss[0.9]
    way = math.log(math.log(1.05) / loss[0.5]) / math.log(loss[0.9] / loss[0.5])
    assert drawn["ppl+5%", "Qwen1.5-7B"] == f"{0.5 + 0.4 * way:.3f}"
    assert drawn["ppl+20%", "Qwen1.5-32B"] == "≥ 0.990"  # within the budget at the most that was measured
    assert ("ppl+1%", "Qwen1.5-0.5B") not in drawn  # beyond the budget at the least
    figure = law_reach(law)
    assert figure is not None
    assert "An open mark is a bound" in figure.caption
    marks = {row["mark"] for row in rows_of(figure) if "mark" in row}
    assert marks == {"dot", "open", ""}
    answer = predict(law, {"size": 4e9, "loss": math.log1p(0.05)})
    (bar,) = [row for row in rows_of(figure) if row.get("label") == "law at ppl+5%" and row["x"] == 4e9]
    assert (bar["y"], bar["y_low"], bar["y_high"]) == (answer.value, *answer.interval)


def test_measured_shares_are_of_one_block_size() -> None:
    law = side_by_side(narrow(load_table("fig8"), ["block<=64"]), "weak", "strong")
    at_16 = reached(msgspec.structs.replace(law, fits=tuple(f for f in law.fits if f.form == "strong")))
    weak = msgspec.structs.replace(law, best="weak")  # whose points do not keep the block size
    measured = {key: share for key, share in reached(weak).items() if "law" not in key[0]}
    assert measured
    assert measured == {key: share for key, share in at_16.items() if "law" not in key[0]}
    figure = law_reach(weak)
    assert figure is not None
    assert "Dots are measured at block 16" in figure.caption
    alone = law_reach(msgspec.structs.replace(weak, fits=tuple(f for f in law.fits if f.form == "weak")))
    assert alone is not None
    assert "Not measured for Qwen1.5-7B, Qwen1.5-14B" in alone.caption
    assert "Dots" not in alone.caption


def test_residuals_have_the_sign_that_the_terminal_s_have() -> None:
    law = fit_law(load_table("t2"), "weak", standard_error=0.003, draws=0)
    points = [p for p in law.fits[0].points if not p.by_difference]
    left = len(law.fits[0].points) - len(points)
    assert left > 0
    figure = law_residuals(law)
    drawn = [row["y"] for row in rows_of(figure) if "mark" in row]
    assert drawn == pytest.approx([100 * (p.predicted / p.measured - 1) for p in points])
    assert f"Left out: {left} point" in figure.caption
    assert "Left out" not in law_residuals(fit_law(load_table("t1"), "weak", draws=0)).caption


def test_a_law_s_page_has_its_coefficients_forms_and_notes() -> None:
    law = fit_law(load_table("t2"), "weak", standard_error=0.003, draws=100)
    law = msgspec.structs.replace(law, refused={"strong": "strong needs block"})
    parts = [part for part in PARTS["law"](Story((law,))) if not isinstance(part, Figure)]
    said = html.unescape("".join(map(part_html, parts)))
    for fit in law.fits:
        for p in fit.parameters:
            interval = " to ".join(f"{end:.4g}" for end in p.interval)
            assert f'<td>{p.name}</td><td class="n">{p.value:.4g}</td><td class="n">{interval}</td>' in said
        assert f'{fit.quality[0].r_squared:.3f}</td><td class="n">' in said
        assert all(f"<td>{note}</td>" in said for note in fit.notes)
    assert "<td>not fitted: strong needs block</td>" in said
    assert "at or near zero, counted by difference over its error: Qwen1.5-32B, ratio 0.5" in said


def test_each_model_is_drawn_with_the_tokens_that_it_had() -> None:
    table = load_table("t1")
    tokens = {size: (1e12 if i % 2 else 4e12) for i, size in enumerate(sorted({r.size or 0 for r in table.rows}))}
    rows = [msgspec.structs.replace(r, tokens=tokens[r.size or 0]) for r in table.rows]
    law = fit_law(msgspec.structs.replace(table, rows=tuple(rows)), "weak-tokens", draws=0)
    figure = law_reach(law)
    assert figure is not None
    assert "each trained on as many tokens as it was" in figure.caption
    expected = [
        predict(law, {"size": size, "tokens": own, "loss": math.log(1.05)}).value for size, own in tokens.items()
    ]
    drawn = [float(row[3]) for row in figure.table.rows if row[0] == "ppl+5%, law"]
    assert drawn == pytest.approx(expected, abs=1e-3)


def test_a_verdict_on_forms_that_cannot_be_compared_names_none_as_the_best() -> None:
    law = fit_law(narrow(load_table("t1"), ["size!=1.8B", "size!=4B", "size!=7B", "size!=14B"]), draws=0)
    assert law.uncompared == ("high-share", "weak")
    headline, said = verdict(Story((law,)))
    assert "No form can be called the best: without some size there are too few data for high-share and weak" in said
    assert headline.startswith("The weak law is off by")


# ---------------------------------------------------------------- the page


def test_sections_come_in_their_order(report: Path) -> None:
    page = report.read_text("utf-8")
    assert re.findall(r'<section id="([^"]+)"', page) == SECTIONS


def test_the_page_is_small_and_asks_the_network_for_nothing(report: Path) -> None:
    assert report.stat().st_size < 5e6
    page = report.read_text("utf-8")
    assert "default-src 'none'" in page
    outside_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in outside_scripts.replace("http-equiv", "")
    assert not re.search(r'<(link|img|iframe)\b|\bsrc="', outside_scripts)
    charts = re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)
    assert charts is not None
    assert "http" not in charts[1]
    assert json.loads(charts[1]).keys() >= FIGURES | LAW_FIGURES


def test_every_figure_is_saved_as_svg_and_png(report: Path, figures: dict[str, Figure]) -> None:
    folder = report.parent / "figures"
    assert {p.name for p in folder.iterdir()} == {f"{key}.{kind}" for key in figures for kind in ("svg", "png")}
    for key, figure in figures.items():
        svg = ElementTree.fromstring((folder / f"{key}.svg").read_text("utf-8"))
        words = "".join(svg.itertext())
        assert figure.title in words
        png = (folder / f"{key}.png").read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert width > 1000
        assert height > 300


def test_the_same_records_give_the_same_bytes(report: Path, story: Story, figures: dict[str, Figure]) -> None:
    assert document(story, assemble(story)) == report.read_text("utf-8")
    svg = (report.parent / "figures" / "spike-map.svg").read_text("utf-8")
    assert to_svg(figures["spike-map"]) == svg


def test_the_page_names_no_place_on_the_machine(report: Path, tiny_run: Path) -> None:
    page = report.read_text("utf-8")
    assert str(tiny_run.parent) not in page
    assert "qarat run model --calibration tiny.jsonl" in html.unescape(page)


def test_a_command_keeps_its_words_and_loses_its_places() -> None:
    words = ["../m", "w=int8/channel a=int8/tensor/static", "/home/me/out", "--text=/data/x.txt", "owner/name", "ratio"]
    kept = ["m", "w=int8/channel a=int8/tensor/static", "out", "--text=x.txt", "owner/name", "ratio"]
    assert list(map(portable, words)) == kept


def test_text_of_a_model_is_never_markup() -> None:
    origin = Provenance("m", "t", "c", {})
    wild = "</pre><script>alert(1)</script>\x1b[31m"
    texts = Continuations(origin, "a <b>", {"float": "same", "naive": f"sa{wild}\n   more"})
    page = part_html(next(show_continuations(texts)))
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in page
    assert "\n   <mark>more</mark>" in page


# ---------------------------------------------------------------- the verdict


def test_the_verdict_has_the_numbers(story: Story) -> None:
    headline, said = verdict(story)
    assert re.fullmatch(r"[+-]\d+\.\d\d % perplexity instead of [+-]\d+\.\d\d %", headline)
    assert said.startswith("INT8 with 1 of 14 projections in float (1.down; ")
    assert len(f"{headline} {said}".split()) < 30  # read in ten seconds
    evaluations = {e.label: e for e in story.evaluations}
    lost = [math.expm1(evaluations[label].loss - evaluations["float"].loss) for label in ("plan", "naive")]
    assert [float(number) for number in re.findall(r"[+-]\d+\.\d\d", headline)] == pytest.approx(
        [100 * change for change in lost], abs=0.006
    )


def test_a_page_names_the_model_its_sizes_and_the_line_that_serves_it(story: Story, tiny_run: Path) -> None:
    assert subject(story) == "model"  # as the command called it, without its place
    assert re.fullmatch(r"\d+ [A-Z][a-z]+ 20\d\d", story.about.date)
    model = open_model(str(tiny_run.parent / "model"))
    assert story.about.float_bytes == sum(
        tensor.numel() * tensor.element_size()
        for tensor in load_file(tiny_run.parent / "model" / "model.safetensors").values()
    ) == model.source_bytes  # fmt: skip
    assert story.about.bytes == sum(path.stat().st_size for path in (tiny_run / "model").glob("*.safetensors"))
    (size,) = [fact for fact in facts(story) if fact[0] == "weights on disk"]
    assert size[1:] == (f"{story.about.bytes / 1e6:.3f} MB", f"instead of {model.source_bytes / 1e6:.3f} MB in float")
    following = next_lines(story)
    assert following is not None
    assert following.text == "qarat export out -o out-vllm\nvllm serve out-vllm"
    page = html.unescape(document(story, assemble(story)))
    assert "<title>model: " in page
    assert following.text in page
    assert Story(story.records).about == About()
    assert subject(Story(story.records)).startswith("model ")


def test_a_plan_that_vllm_does_not_run_has_no_line_that_serves_it(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(tiny_run, folder)
    plan = decode_record(folder / "model" / "plan.json", Plan)
    site = "model.layers.0.self_attn.q_proj"
    split = plan.with_schemes({site: parse_scheme("float")}, "not as its neighbours")
    (folder / "model" / "plan.json").write_bytes(encode_record(split))
    assert gather([folder]).about.serving == ()


def test_remedies_are_measured_or_said_to_be_predicted(story: Story) -> None:
    naive, plan = remedies(story)
    assert (naive.label, plan.label) == ("naive: everything low", "1 site in float: the plan")
    menu, sweep = story.one(Menu), story.one(Protection)
    assert menu is not None
    assert sweep is not None
    assert naive.predicted == pytest.approx(sum(menu.damages(decode_low(story)).values()))
    assert plan.predicted in sweep.predicted
    rows = figures_of(story)["outcome"].table.rows
    assert [row[0] for row in rows] == ["float", naive.label, plan.label]


def decode_low(story: Story) -> str:
    plan = story.one(Plan)
    assert plan is not None
    return plan.low


def rewritten(story: Story) -> Story:
    """The story as if its plan were of the rewritten model, whose rewrites are at hand."""
    plan = story.one(Plan)
    assert plan is not None
    fitted = FittedScales(0, 0.001, 0.002, b""), FittedScales(4, 0.0005, 0.0015, b"")
    streams = tuple(
        StreamRewrite(f"model.layers.{block}.down_in", (f"model.layers.{block}.mlp.down_proj",), naive, fitted)
        for block, naive in enumerate((0.01, 0.04))
    )
    origin = next(e.provenance for e in story.evaluations)
    record = Rewrites(origin, "s", plan.low, 1.2, (0, 4), streams)
    model = f"{plan.model}+rewrite/4@0123456789ab"
    there = {e.label: e for e in story.evaluations}
    done = msgspec.structs.replace(there["plan"], provenance=msgspec.structs.replace(origin, model=model))
    return Story(
        (
            *changed(story, msgspec.structs.replace(plan, model=model), there["float"], there["naive"], done).records,
            record,
        )
    )


def test_what_rewrites_take_is_predicted_stream_by_stream(story: Story) -> None:
    whole = rewritten(story)
    naive, alone, plan = remedies(whole)
    assert naive.predicted == pytest.approx(0.05)
    assert (alone.label, alone.measured) == ("rewrites alone", None)
    assert plan.label == "rewrites and 1 site in float: the plan"
    (row,) = [row for row in figures_of(whole)["outcome"].table.rows if row[0] == "rewrites alone"]
    assert "not measured" in row
    streams = rewritten_streams(whole)
    assert streams is not None
    assert streams.rows == (("1.down_in", "0.0400", "80.0", "0.0020"), ("0.down_in", "0.0100", "20.0", "0.0020"))
    assert rewritten_streams(story) is None
    measured = msgspec.structs.replace(whole.evaluations[-1], label="without protection")
    assert remedies(Story((*whole.records, measured)))[1].measured == measured


def changed(story: Story, *records: Record) -> Story:
    """A story with some of its records replaced by others of the same kind."""
    kinds = tuple(map(type, records))
    return Story((*(r for r in story.records if not isinstance(r, kinds)), *records))


def overridden(plan: Plan, name: str, scheme: str) -> Plan:
    return plan.with_schemes({f"model.layers.{name}_proj": parse_scheme(scheme)}, "matches it")


def test_overrides_are_no_protection(story: Story) -> None:
    plan, sweep = story.one(Plan), story.one(Protection)
    assert plan is not None
    assert sweep is not None
    plan = overridden(overridden(plan, "0.mlp.up", "float"), "0.mlp.gate", "w=int4/g32 a=int8/token")
    several = changed(story, plan)
    assert [a.site.name for a in several.protected] == ["model.layers.1.mlp.down_proj"]
    said = verdict(several).note
    assert said.startswith("INT8 with 1 of 14 projections in float (1.down; ")
    assert "; the other number is with 2 projections as --set decides too." in said
    table = {row[0]: row[3] for row in several_rows(several)}
    assert table.keys() == {"1.down", "0.up", "0.gate"}
    assert table["0.up"] == "matches it"
    assert table["1.down"].startswith("protected: low it is predicted to cost ")
    nothing = msgspec.structs.replace(sweep, kept=(), budget_nats=9.0)
    low = overridden(plan, "1.mlp.down", plan.low)
    said = verdict(changed(story, low, nothing)).note
    assert said.startswith("INT8 in 12 of 14 projections; the other number is with 2 projections as --set decides too.")
    assert "Nothing needs protection." in said


def several_rows(story: Story) -> tuple[tuple[str, ...], ...]:
    """The page's table of what is not in the low scheme."""
    page = document(story, assemble(story))
    body = page.partition('<th scope="col">not low</th>')[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return tuple(tuple(re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)) for row in rows)


def test_a_transformed_run_does_not_call_protection_what_its_transforms_bought(story: Story) -> None:
    plan = story.one(Plan)
    assert plan is not None
    model = f"{plan.model}+smooth/0.6@0123456789ab+hadamard"
    evaluations = [
        msgspec.structs.replace(e, provenance=msgspec.structs.replace(e.provenance, model=model))
        for e in story.evaluations
        if e.label != "float"
    ]
    floats = [e for e in story.evaluations if e.label == "float"]
    rotated = changed(story, msgspec.structs.replace(plan, model=model, prefix=(0,)), *floats, *evaluations)
    said = "; the other number is with smooth/0.6, hadamard and a prefix of 1 token in float too."
    assert said in verdict(rotated).note
    figure = figures_of(rotated)["outcome"]
    assert [row[0] for row in figure.table.rows] == [
        "float",
        "naive: everything low, with smooth/0.6 and hadamard",
        "smooth/0.6 and hadamard alone",
        "smooth/0.6, hadamard and 1 site in float: the plan",
    ]
    assert {row["group"] for row in rows_of(figure) if "group" in row} == {"float", "naive", "plan"}


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("float", "float"),
        ("w=int8/channel a=int8/tensor/static", "INT8"),
        ("w=mxint4", "MXINT4 weights"),
        ("w=int4/g128 a=e4m3/token", "INT4 weights and E4M3 inputs"),
    ],
)
def test_schemes_in_words(scheme: str, words: str) -> None:
    assert scheme_words(parse_scheme(scheme)) == words


# ---------------------------------------------------------------- what is not there


def test_an_unfinished_run_shows_what_is_there_and_says_what_is_missing(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    shutil.copytree(tiny_run, folder)
    manifest = read_manifest(folder).steps
    kept = {step: manifest[step] for step in ("profile", "damage")}
    (folder / "manifest.json").write_text(json.dumps({"kind": "run", "steps": kept}))
    half = gather([tmp_path / "out"])  # as it will be called
    assembled = assemble(half)
    keys = figures_of(half).keys()
    assert "spike-map" in keys
    assert not keys & {"plan", "recovery", "outcome"}
    page = html.unescape(document(half, assembled))
    assert "This run is not finished. Missing: plan, quantize, evaluate float" in page
    assert "It continues with the same command: qarat run model" in page
    assert "Not there yet: plan." in page
    assert "starve ordinary tokens" in verdict(half).headline


def test_stats_of_an_older_version_say_what_they_lack(tiny_run: Path, tmp_path: Path) -> None:
    stats = decode_record(tiny_run / "stats.safetensors", ActivationStats)
    for stream in stats.streams.values():
        del stream.arrays["position_maxima"]
    old = tmp_path / "stats.safetensors"
    old.write_bytes(encode_record(stats))
    story = gather([old])
    assert not any(key.startswith("profile") for key in figures_of(story))
    parts = [part for section in assemble(story) for part in section.parts]
    assert any("profile the model again" in part for part in parts if isinstance(part, str))


def test_what_does_not_belong_together_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*nothing\.json"):
        write_report([tmp_path / "nothing.json"], tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        write_report([tmp_path], tmp_path)
    again = tmp_path / "other.json"
    shutil.copy(tiny_run / "protection.json", again)
    with pytest.raises(UserError, match=r"one of a kind.*protection\.json and other\.json"):
        write_report([tiny_run, again], tmp_path)
    sweep = decode_record(tiny_run / "protection.json", Protection)
    stranger = msgspec.structs.replace(sweep, provenance=msgspec.structs.replace(sweep.provenance, model="f" * 64))
    again.write_bytes(encode_record(stranger))
    with pytest.raises(UserError, match=r"several models.*other\.json is of ffffffffffff"):
        write_report([tiny_run / "stats.safetensors", again], tmp_path)
    assert not (tmp_path / "report.html").exists()
