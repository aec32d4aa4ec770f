"""The pages of a search and of advice, and what every page has for those who do not see it."""

from __future__ import annotations

import html
import itertools
import math
import re
from pathlib import Path

import altair as alt
import msgspec
import pytest

from qarat.ground.errors import UserError
from qarat.jobs.folder import Manifest
from qarat.surfaces.page import write_report
from qarat.surfaces.page.document import assemble, document
from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.parts import figures_in
from qarat.surfaces.page.rendering import DARK, LIGHT
from qarat.surfaces.page.story import About, Story, gather
from qarat.surfaces.page.verdict import facts, next_lines, verdict
from qarat.values.records.advice import Advice
from qarat.values.records.files import encode_record
from qarat.values.records.search import SearchResult
from qarat.values.records.spike_study import SpikeStudy

CALLED = About(folder="out", model="py-64")


def figures_of(story: Story) -> dict[str, Figure]:
    return {f.key: f for section in assemble(story) for f in figures_in(section.parts)}


def page_of(story: Story) -> str:
    return html.unescape(document(story, assemble(story))).replace("\u00a0", " ")


def test_a_search_has_its_frontier_over_share_and_bits(search: SearchResult) -> None:
    figures = figures_of(Story((search,)))
    assert figures.keys() == {"frontier-ratio", "frontier-bits"}
    for key, place in (("frontier-ratio", lambda t: f"{t.ratio:.3f}"), ("frontier-bits", lambda t: f"{t.bits:.2f}")):
        alt.LayerChart.from_dict(figures[key].definition())
        rows = figures[key].table.rows
        few, many, bad = search.trials
        best = [row[:3] for row in rows if row[0] == "measured, and none is both cheaper and better"]
        assert {row[1:] for row in best} == {(t.label, place(t)) for t in (few, many)}
        assert [row[1:3] for row in rows if row[0] == "measured, and another is"] == [(bad.label, place(bad))]
        predicted = {row[1]: float(row[3]) for row in rows if row[0].startswith("predicted")}
        assert predicted == pytest.approx({t.label: 1.1 * t.predicted for t in search.trials}, abs=1e-4)
        (chosen,) = [row for row in rows if row[0].startswith("chosen")]
        assert (chosen[1], chosen[2], chosen[3]) == ("ppl+5%", place(many), "0.0450")
        (limit,) = figures[key].definition()["datasets"]["limit"]
        assert (limit["at"], limit["name"]) == (pytest.approx(math.log(1.05)), "budget ppl+5%")


def test_a_search_says_what_its_budget_reaches_and_what_to_type(search: SearchResult) -> None:
    story = Story((search,), about=CALLED)
    headline, said = verdict(story)
    assert headline == "60.0 % of the weights in MXINT4 within ppl+5%"
    assert said.startswith("On text that the search has not seen, +4.60 % perplexity (95 %: ")
    assert facts(story) == [("ppl+5%", "0.600 low (Q_r)", "95 %: 0.550 to 0.700; 9.40 bits per weight")]
    following = next_lines(story)
    assert following is not None
    assert following.text == "qarat quantize py-64 --plan out/plan-ppl+5pct.json"
    missed = msgspec.structs.replace(search, reached=(msgspec.structs.replace(search.reached[0], trial=-1),))
    assert verdict(Story((missed,))).headline == "No plan keeps a budget"
    assert next_lines(Story((missed,), about=CALLED)) is None


def test_a_folder_of_searching_has_a_page_once_it_is_finished(search: SearchResult, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(Manifest("search")))
    with pytest.raises(UserError, match="is not finished; it continues with the same command"):
        write_report([tmp_path], tmp_path)
    (tmp_path / "search.json").write_bytes(encode_record(search))
    (tmp_path / "log.jsonl").write_text(
        '{"time": "2026-03-09T10:00:00+0000", "command": "qarat search /x/py-64", "model": "/x/py-64"}\n'
    )
    story = gather([tmp_path])
    assert story.one(SearchResult) == search
    assert (story.about.model, story.about.date, story.about.command) == ("py-64", "9 March 2026", "qarat search py-64")
    assert write_report([tmp_path], tmp_path).is_file()
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == {"frontier-ratio", "frontier-bits"}
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(Manifest("ratio-study")))
    with pytest.raises(UserError, match="of many searches"):
        gather([tmp_path])


def test_advice_has_its_landscape_drawn_and_a_line_to_go_on(advice: Advice) -> None:
    story = Story((advice,), about=CALLED)
    assert verdict(story).headline == "W8A8: +0.50 % perplexity at 0.900 MB"
    assert verdict(story).note == "The smallest that was measured within ppl+1% (95 %: +0.30 to +0.70 %)."
    following = next_lines(story)
    assert following is not None
    assert following.text == "qarat run py-64 --low w=int8/channel --budget ppl+1%"
    rows = figures_of(story)["landscape"].table.rows
    assert [row[:2] for row in rows if row[0] == "with its recipe, measured"] == [("with its recipe, measured", "W8A8")]
    assert len(rows) == 2 + 2 + 1
    quiet = msgspec.structs.replace(advice, measured={})
    assert verdict(Story((quiet,))).note == ""
    assert "smallest predicted to keep ppl+1%" in verdict(Story((quiet,))).headline


@pytest.mark.parametrize("kind", ["study", "search", "advice"])
def test_a_page_is_there_for_those_who_do_not_see_it(kind: str, request: pytest.FixtureRequest) -> None:
    page = page_of(Story((request.getfixturevalue(kind),)))
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert '<html lang="en">' in page
    assert re.search(r"<title>[^<]+</title>", page)
    assert re.findall(r"<h(\d)", body)[:2] == ["1", "2"]
    levels = [int(level) for level in re.findall(r"<h(\d)", body)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert "<th>" not in body
    assert body.count('<th scope="col"') == body.count("<th ")
    assert not re.search(r'<th scope="col"[^>]*></th>', body)
    for opening in re.findall(r"<(?:div|pre)[^>]*tabindex[^>]*>", body):
        assert 'role="region"' in opening
        assert re.search(r'aria-label="[^"]+"', opening)
    charts = set(re.findall(r'data-chart="([^"]+)"', body))
    assert charts
    for key in charts:
        assert f'<figure aria-labelledby="title-{key}">' in body
        assert f'id="title-{key}"' in body
    assert len(re.findall(r' id="([^"]+)"', body)) == len(set(re.findall(r' id="([^"]+)"', body)))


def luminance(colour: str) -> float:
    """Relative luminance, after WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out_from_the_paper(theme: dict[str, str]) -> None:
    def contrast(name: str) -> float:
        lighter, darker = sorted((luminance(theme[name]), luminance(theme["paper"])), reverse=True)
        return (lighter + 0.05) / (darker + 0.05)

    assert all(contrast(name) >= 4.5 for name in ("ink", "quiet", "plan"))  # text, WCAG 1.4.3
    assert all(contrast(name) >= 3 for name in ("naive", "grey", "green", "purple", "amber", "sky"))  # marks, 1.4.11


def test_a_study_s_prose_gives_intervals_and_no_half_widths(study: SpikeStudy) -> None:
    section = next(section for section in assemble(Story((study,))) if section.key == "study")
    said = [part for part in section.parts if isinstance(part, str)]
    assert any("(+0.50 % perplexity; 95 %: " in line for line in said)
    assert not any(re.search(r"\d ± \d", line) for line in said)
