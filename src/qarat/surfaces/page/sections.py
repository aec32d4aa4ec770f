"""The sections of a page: each a function from the story to its parts.

What another kind of record has to show is one more function in `PARTS`, and its title and lead in `sections.json`. The
last section says where the numbers come from: model, tokens, versions, command and the records' hashes, and no places
on a machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from qarat.stages.laws.forms import FORMS
from qarat.stages.spikes import find_spikes
from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.frontier import frontier, price_of_bits
from qarat.surfaces.page.figures.law_reach import law_reach
from qarat.surfaces.page.figures.law_sections import law_along, law_fit, law_residuals
from qarat.surfaces.page.figures.losses import divergence_along, outcome, recovery
from qarat.surfaces.page.figures.maps import calibration_map, spike_map, strip
from qarat.surfaces.page.figures.streams import grids, profile
from qarat.surfaces.page.parts import Command, Folded, Listed, Part, Terms, Titled
from qarat.surfaces.page.remedies import remedies, rewritten_streams
from qarat.surfaces.page.story import Story, origin
from qarat.surfaces.page.study import study_parts
from qarat.surfaces.page.verdict import low_input
from qarat.surfaces.tables.advice import commands, cost, landscape, measurements, unrun, versions, where_they_run
from qarat.surfaces.tables.calibration_study import conditions as conditions_of_calibration
from qarat.surfaces.tables.calibration_study import mismatches
from qarat.surfaces.tables.choices import not_low
from qarat.surfaces.tables.data import table, texts
from qarat.surfaces.tables.laws import coefficients, compared_forms, notes_table
from qarat.surfaces.tables.scores import WORST, agreement, departures, show_continuations
from qarat.surfaces.tables.search import adding_up, budgets, sizes, verdicts
from qarat.surfaces.tables.search import cost as search_cost
from qarat.surfaces.tables.speed import conditions, speeds
from qarat.surfaces.tables.wording import count
from qarat.values.formats import FORMATS
from qarat.values.plans import Assignment, Plan
from qarat.values.records.advice import Advice
from qarat.values.records.calibration_study import CalibrationStudy
from qarat.values.records.law import Law
from qarat.values.records.prices import Menu, Protection
from qarat.values.records.scores import Continuations, Divergence, Evaluation
from qarat.values.records.search import SearchResult
from qarat.values.records.speed import EngineSpeed
from qarat.values.records.spike_study import SpikeStudy
from qarat.values.records.streams import ActivationStats, StreamStats
from qarat.values.requests.protect import PLANNING_RULES
from qarat.values.schemes import TensorScheme

_SPIKES = 6  # streams whose profile and grids are shown, all but the first folded


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a page says of a section beside its parts; `sections.json` has them all, in the order of the page.

    Attributes:
        title: Its heading.
        lead: A paragraph that says what to take from it.
        steps: Of a run, that it needs.
    """

    title: str
    lead: str
    steps: tuple[str, ...] = ()


def _advice(story: Story) -> Iterator[Part]:
    if advice := story.one(Advice):
        if not all(s.is_of_caches for s in advice.schemes):
            yield price_of_bits(advice)
        yield Titled("The landscape", landscape(advice))
        if advice.measured:
            yield Titled("Measured", measurements(advice))
        yield Titled("Where they run", where_they_run(advice))
        yield Listed([versions(advice), *unrun(advice)])
        yield Titled("What to type next", commands(advice))
        yield f"{cost(advice).capitalize()}."


def _search(story: Story) -> Iterator[Part]:
    if search := story.one(SearchResult):
        if any(not t.failure for t in search.trials):
            axes = ("ratio", "bits") if search.axis == "ratio" else (search.axis,)
            yield from (frontier(search, axis) for axis in axes)
        if search.reached:
            yield Titled("What each budget reaches", budgets(search))
            yield Listed([f"{line}." for line in (*verdicts(search), *([sizes(search)] if search.context else []))])
        yield from (f"{line}." for line in (*adding_up(search), search_cost(search)))


def _cost(story: Story) -> Iterator[Part]:
    sweep = story.one(Protection)
    if len(story.evaluations) > 1:
        budget = (sweep.budget_nats, f"budget {sweep.budget}") if sweep else None
        yield outcome(remedies(story), story.evaluations[0], budget)
    if streams := rewritten_streams(story):
        yield Titled("What rewrites take from the dearest streams, predicted", streams)


def _words(story: Story) -> Iterator[Part]:
    continuations = story.one(Continuations)
    if records := story.all(Divergence):
        yield Titled("How often float's likeliest token stays the likeliest", agreement(records))
        yield divergence_along(records)
        yield Titled(f"Where {records[-1].label} departs most", departures(records[-1], WORST))
    if continuations and continuations.texts:
        passages = next(show_continuations(continuations))._replace(title="One prompt shows no more than luck")
        yield Folded("The same prompt, continued greedily", (passages,))


def _study(story: Story) -> Iterator[Part]:
    if study := story.one(SpikeStudy):
        yield from study_parts(study, story.one(ActivationStats))


def _calibration(story: Story) -> Iterator[Part]:
    if study := story.one(CalibrationStudy):
        if study.measured:
            yield calibration_map(study)
            yield Titled(
                "How much more than calibrated on the column's own text, or else on the best", mismatches(study)
            )
        yield Listed([f"{line}." for line in conditions_of_calibration(study)])


def _spikes(story: Story) -> Iterator[Part]:
    stats = story.one(ActivationStats)
    if stats is None:
        return
    low = low_input(story)
    yield spike_map(stats, low)
    streams = _notable(stats, low, story.protected)
    if not streams:
        read = [s for s in stats.streams.values() if s.kind.endswith("_in")]
        streams = [max(read, key=lambda s: s.ratio)]
        yield "No stream is flagged and none is protected. The next figures show the nearest to one."
    formats = list(dict.fromkeys([low.format if low and low.format in FORMATS else "int8", "int8", "e4m3"]))
    first, *others = ((*_profiled(s, formats), grids(s, stats.edges, formats)) for s in streams[:_SPIKES])
    yield from first
    if any("position_maxima" not in s.arrays for s in streams):
        yield "These stats hold no profile by position; profile the model again to see it."
    if others:
        more = f"The next {count(len(others), 'stream')} by r, of {len(streams)} that are flagged or protected"
        yield Folded(more, tuple(itertools.chain(*others)))


def _profiled(stream: StreamStats, formats: Sequence[str]) -> Iterator[Figure]:
    if "position_maxima" in stream.arrays:
        yield profile(stream, FORMATS[formats[0]])


def _notable(stats: ActivationStats, low: TensorScheme | None, kept: Sequence[Assignment]) -> list[StreamStats]:
    """What protected sites read and what rules flag, the largest spike first."""
    protected = {name for a in kept for name in a.site.streams}
    flagged = {name for rule in PLANNING_RULES for name in find_spikes(stats, rule, low).flagged}
    names = (protected | flagged) & stats.streams.keys()
    return sorted((stats.streams[name] for name in names), key=lambda s: (-s.ratio, s.name))


def _recovery(story: Story) -> Iterator[Part]:
    if sweep := story.one(Protection):
        plan = story.one(Plan)
        if plan and len(sweep.trials) > 1:
            yield recovery(sweep, plan)
        yield f"{sweep.verdict[:1].upper()}{sweep.verdict[1:]}."


def _plan(story: Story) -> Iterator[Part]:
    if plan := story.one(Plan):
        yield strip(plan)
        if plan.exceptions():
            yield Titled("Not in the low scheme", not_low(plan))


def _law(story: Story) -> Iterator[Part]:
    """Everything that the page says of a law; a published one comes without points and so without figures."""
    law = story.one(Law)
    if law is None:
        return
    form = FORMS.load(law.shown)
    yield (f"{form.title}: {form.equation}")
    if any(fit.quality for fit in law.fits):
        yield Titled("Forms compared", compared_forms(law))
    if any(fit.points for fit in law.fits):
        figures = (law_along(law, "ratio"), law_reach(law), law_along(law, "block"), law_fit(law), law_residuals(law))
        yield from (figure for figure in figures if figure is not None)
    else:
        yield ("This law comes without the points it was fitted to, so there is nothing to draw.")
    # The form that is shown first, those that are fitted in groups, which may be many, last.
    fits = sorted(law.fits, key=lambda fit: (fit.form != law.shown, bool(fit.group)))
    yield Titled("Coefficients", coefficients(fits).used())
    yield Titled("What must be known of the fits", notes_table(law, fits))


_SETS = {
    "calibration": (ActivationStats,),
    "selection": (Advice, Menu, Protection, SearchResult),
    "report": (Evaluation, SpikeStudy, CalibrationStudy),
}


def _speed(story: Story) -> Iterator[Part]:
    if speed := story.one(EngineSpeed):
        yield Titled("Every folder and measure", speeds(speed))
        yield Listed([f"{line}." for line in (*conditions(speed), *speed.notes)])


def _provenance(story: Story) -> Iterator[Part]:
    """The facts that decide every number above, and the hash of every record."""
    if not story.records:
        return
    if story.about.command:
        yield Command("command", story.about.command)
    yield Terms("provenance", _facts(story))
    yield Titled("Records", table(texts("record", "SHA-256 of its content"), story.hashes.items()))


def _facts(story: Story) -> list[tuple[str, ...]]:
    """Terms and what is said of them; what all records share stands once."""
    origins = [where for record in story.records if (where := origin(record))]
    facts: list[tuple[str, ...]] = []
    if origins:
        facts.append(("model", *dict.fromkeys(p.model for p in origins)))
    for name, kinds in _SETS.items():
        tokens = [r.provenance for kind in kinds for r in story.all(kind)]
        if tokens:
            facts.append((f"{name} tokens", *dict.fromkeys(f"{p.tokens} ({p.convention})" for p in tokens)))
    if origins:
        if sources := dict.fromkeys(p.source for p in origins if p.source):
            facts.append(("source", *sources))
        facts.append(("versions", *dict.fromkeys(_versions(p.versions) for p in origins)))
        facts.append(("arithmetic, seed", *dict.fromkeys(f"{p.dtype}, seed {p.seed}" for p in origins)))
    if speed := story.one(EngineSpeed):
        facts.append(("folders", *(f"{f.folder}: {f.fingerprint}" for f in speed.folders)))
    if law := story.one(Law):
        facts.append(("measurements", f"{law.data}: {law.data_hash}", _versions(law.versions), f"seed {law.seed}"))
    return facts


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


SECTIONS = msgspec.json.decode((Path(__file__).parent / "sections.json").read_bytes(), type=dict[str, Section])
"""By their places on the page, in its order."""
PARTS: dict[str, Callable[[Story], Iterator[Part]]] = {
    "advice": _advice,
    "search": _search,
    "cost": _cost,
    "words": _words,
    "study": _study,
    "calibration": _calibration,
    "spikes": _spikes,
    "recovery": _recovery,
    "plan": _plan,
    "law": _law,
    "speed": _speed,
    "provenance": _provenance,
}
"""The parts of each; none where the story has nothing for it."""
