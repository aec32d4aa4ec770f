"""The page of a spike study, on losses made up so that the answers are known."""

from __future__ import annotations

import html

import altair as alt
import msgspec
import pytest

from qarat.surfaces.page.document import assemble, document
from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.parts import Folded, figures_in
from qarat.surfaces.page.story import Story
from qarat.surfaces.page.verdict import facts, verdict
from qarat.values.records.scores import Continuations
from qarat.values.records.spike_study import RuleSays, SpikeStudy


def figures_of(study: SpikeStudy) -> dict[str, Figure]:
    return {f.key: f for section in assemble(Story((study,))) for f in figures_in(section.parts)}


@pytest.fixture(scope="module")
def page(study: SpikeStudy) -> str:
    return page_of(study)


def page_of(study: SpikeStudy) -> str:
    story = Story((study,))
    return html.unescape(document(story, assemble(story))).replace("\u00a0", " ")


def test_a_spike_is_what_the_headline_is_about(study: SpikeStudy) -> None:
    headline, said = verdict(Story((study,)))
    assert headline == "+0.50 % perplexity instead of +5.13 %"
    assert said == "INT8 with 1.down in float (1.00 % of the parameters), which takes back 90 % of the loss."


def test_where_no_rule_sees_a_spike_the_headline_says_so(study: SpikeStudy) -> None:
    quiet = msgspec.structs.replace(study, rules=(RuleSays("ratio", (), 3.0, "r > 64"),))
    headline, said = verdict(Story((quiet,)))
    assert headline == "There is no spike to protect"
    assert said.startswith("None of 1 spike rules flags a stream. Naive loses +0.0500 nats (+5.13 % perplexity; 95 %: ")
    assert said.endswith(".")
    assert verdict(Story((msgspec.structs.replace(quiet, sites=()),)))[0] == "No protection that was tried helps"


def test_every_group_of_arms_has_its_figure(study: SpikeStudy) -> None:
    figures = figures_of(study)
    kinds = ("study", "study-ablation", "study-orders", "study-duels", "study-elsewhere")
    assert figures.keys() == {"outcome", "study-8-channel-token", *(f"{kind}-8-channel-static" for kind in kinds)}
    for figure in figures.values():
        assert alt.LayerChart.from_dict(figure.definition()).layer  # raises where Vega-Lite's schema does not allow it
        assert figure.caption.endswith(".")
    shown = {row[0] for row in figures["study-8-channel-static"].table.rows}
    assert shown == {"protected", "prefix + protected", "prefix", "random sites 1: 0.q", "naive"}
    elsewhere = [row[0] for row in figures["study-elsewhere-8-channel-static"].table.rows]
    assert elsewhere[2:] == ["BOS never: naive", "other calibration: naive"]
    assert "input of 1.down: maximum 3, r 2." in figures["study-elsewhere-8-channel-static"].caption


def test_orders_begin_with_naive_and_say_what_each_adds(study: SpikeStudy) -> None:
    table = figures_of(study)["study-orders-8-channel-static"].table
    assert [row[:4] for row in table.rows[:3]] == [
        ("by Fisher", "nothing protected", "0", "0.0500"),
        ("by Fisher", "1.down", "1", "0.0100"),
        ("by Fisher", "0.down", "2", "0.0050"),
    ]
    assert table.rows[3][0] == "by r"


def test_a_method_against_protection_has_its_interval_and_a_winner(study: SpikeStudy) -> None:
    (row,) = figures_of(study)["study-duels-8-channel-static"].table.rows
    label, over, interval, alone, _, together, winner = row
    assert (label, over, alone, together, winner) == ("prefix", "+0.0150", "+0.0200", "+0.0040", "protection")
    assert interval == "+0.0150 to +0.0150"  # the two scatter alike, so that their pairs do not


def test_other_settings_are_folded_away(study: SpikeStudy, page: str) -> None:
    parts = next(section.parts for section in assemble(Story((study,))) if section.key == "study")
    (folded,) = (part for part in parts if isinstance(part, Folded))
    assert [figure.key for figure in figures_in(folded.parts)] == ["study-8-channel-token"]
    fold = page.index(
        '<details class="fold"><summary>What weights and inputs share a scale over: 1 more figure</summary>'
    )
    assert fold < page.index('id="chart-study-8-channel-token"')


def test_published_figures_stand_above_the_study_s_own(study: SpikeStudy, page: str) -> None:
    published = page.index("naive 9250.33, SmoothQuant 15439.73")
    ours = page.index("naive 7.866, protected 7.520, prefix 7.633 (float 7.482)")
    assert published < ours
    assert "None is the first paper's" in page
    assert "Published for" not in page_of(msgspec.structs.replace(study, name="py-128"))


def test_what_could_not_be_measured_is_named_with_its_reason(page: str) -> None:
    assert "Could not be measured: 1 arm" in page
    assert "<td>clip-mse</td>" in page
    assert "the loss of window 3 is no number" in page


def test_float_naive_and_planned_are_the_arms_of_the_main_setting(study: SpikeStudy) -> None:
    story = Story((study,))
    assert [e.label for e in story.evaluations] == ["float", "naive", "plan"]
    table = figures_of(study)["outcome"].table
    assert [row[:2] for row in table.rows] == [("float", "+0.0000"), ("naive", "+0.0500"), ("plan", "+0.0050")]
    assert facts(story)[0][:2] == ("perplexity over float", "+0.50 %")


def test_a_study_that_has_just_begun_has_a_page(study: SpikeStudy) -> None:
    begun = msgspec.structs.replace(study, arms=study.of_group(study.main, "control"), missing=("naive, w=int8/…",))
    assert figures_of(begun).keys() == {"study-8-channel-static"}
    assert verdict(Story((begun,))).headline == "There is nothing to judge by yet"


def test_continuations_of_a_study_are_shown(study: SpikeStudy) -> None:
    texts = Continuations(study.provenance, "def f", {"float": "(x)", "naive": "(((", "plan": "(y)"})
    story = Story((study, texts))
    assert "The same prompt, continued greedily" in document(story, assemble(story))
