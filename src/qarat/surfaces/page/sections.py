"""The sections of a page, in their order: each a function from the story to what it says, or None.

What another kind of record has to show is one more function in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qarat.stages.spikes import find_spikes
from qarat.surfaces.page.figures.base import DataTable, Part
from qarat.surfaces.page.figures.damage import damage
from qarat.surfaces.page.figures.grids import grids
from qarat.surfaces.page.figures.outcome import outcome
from qarat.surfaces.page.figures.profile import profile
from qarat.surfaces.page.figures.recovery import recovery
from qarat.surfaces.page.figures.spike_map import spike_map
from qarat.surfaces.page.figures.strip import strip
from qarat.surfaces.page.law import law_parts
from qarat.surfaces.page.markup import element, paragraph, table
from qarat.surfaces.page.provenance import provenance
from qarat.surfaces.page.story import Story
from qarat.surfaces.page.study import study_parts
from qarat.surfaces.page.texts import texts
from qarat.surfaces.page.verdict import low_input
from qarat.surfaces.tables.layout import count, decimals, fixed, share
from qarat.values.formats import FORMATS
from qarat.values.plans import Assignment, Plan
from qarat.values.records.law import Law
from qarat.values.records.prices import Menu
from qarat.values.records.protection import Protection
from qarat.values.records.scores import Continuations
from qarat.values.records.spike_study import SpikeStudy
from qarat.values.records.streams import ActivationStats, StreamStats
from qarat.values.requests.protect import PLANNING_RULES
from qarat.values.schemes import TensorScheme
from qarat.values.sites import short_name

_SPIKES = 4  # streams whose profile and grids are shown


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        key: Its place on the page.
        title: Its heading.
        lead: A paragraph that says what to take from it.
        steps: Of a run, that it needs.
        build: Gives its parts; none where the story has nothing for it.
    """

    key: str
    title: str
    lead: str
    steps: tuple[str, ...]
    build: Callable[[Story], tuple[Part, ...]]


def _cost(story: Story) -> tuple[Part, ...]:
    parts: list[Part] = []
    sweep, continuations = story.one(Protection), story.one(Continuations)
    if len(story.evaluations) > 1:
        budget = (sweep.budget_nats, f"budget {sweep.budget}") if sweep else None
        parts.append(outcome(story.evaluations, budget))
    if continuations and continuations.texts:
        parts.append(texts(continuations))
    return tuple(parts)


def _study(story: Story) -> tuple[Part, ...]:
    study = story.one(SpikeStudy)
    return study_parts(study, story.one(ActivationStats)) if study else ()


def _spikes(story: Story) -> tuple[Part, ...]:
    stats = story.one(ActivationStats)
    if stats is None:
        return ()
    low = low_input(story)
    parts: list[Part] = [spike_map(stats, low)]
    streams, left = _notable(stats, low, story.protected)
    if not streams:
        streams = [max(_read(stats), key=lambda s: s.ratio)]
        parts.append(paragraph("No stream is flagged and none is protected. The next figures show the nearest to one."))
    formats = list(dict.fromkeys([low.format if low and low.format in FORMATS else "int8", "int8", "e4m3"]))
    for stream in streams:
        if "position_maxima" in stream.arrays:
            parts.append(profile(stream, FORMATS[formats[0]]))
        parts.append(grids(stream, stats.edges, formats))
    if any("position_maxima" not in s.arrays for s in streams):
        parts.append(paragraph("These stats hold no profile by position; profile the model again to see it."))
    if left:
        parts.append(paragraph(f"{count(left, 'more stream')} flagged or protected; the map has them all."))
    return tuple(parts)


def _notable(
    stats: ActivationStats, low: TensorScheme | None, kept: Sequence[Assignment]
) -> tuple[list[StreamStats], int]:
    """What protected sites read, then what rules flag, up to so many; and how many are left."""
    protected = [name for a in kept for name in a.site.streams]
    flagged = [name for rule in PLANNING_RULES for name in find_spikes(stats, rule, low).flagged]
    names = [name for name in dict.fromkeys([*protected, *flagged]) if name in stats.streams]
    return [stats.streams[name] for name in names[:_SPIKES]], len(names[_SPIKES:])


def _read(stats: ActivationStats) -> list[StreamStats]:
    """The streams that projections read."""
    return [s for s in stats.streams.values() if s.kind.endswith("_in")]


def _recovery(story: Story) -> tuple[Part, ...]:
    sweep = story.one(Protection)
    return (recovery(sweep), paragraph(f"{sweep.verdict}.")) if sweep else ()


def _plan(story: Story) -> tuple[Part, ...]:
    plan, sweep = story.one(Plan), story.one(Protection)
    if plan is None:
        return ()
    kept = _others(plan, sweep)
    return (strip(plan), element("div", table(kept), class_="scroll", tabindex="0")) if kept.rows else (strip(plan),)


def _others(plan: Plan, sweep: Protection | None) -> DataTable:
    """What is not in the low scheme; of what is protected, what leaving it low would cost."""
    recovered = {site: t.damage for t in (sweep.recoveries if sweep else ()) for site in t.sites}
    digits = decimals([d.nats for d in recovered.values()])
    total = sum(a.site.parameters for a in plan.assignments)
    columns = ("not in the low scheme", "kept in", "parameters (%)", "leaving it low adds (nats)", "± SE (nats)")
    rows: list[tuple[str, ...]] = []
    for a in plan.exceptions():
        loss = recovered.get(a.site.name)
        measured = (fixed(loss.nats, digits), fixed(loss.standard_error, digits)) if loss else ("", "")
        rows.append((short_name(a.site.name), str(a.scheme), share(a.site.parameters, total, 2), *measured))
    return DataTable(columns, tuple(rows), frozenset(columns[2:]))


def _damage(story: Story) -> tuple[Part, ...]:
    menu, sweep, plan = story.one(Menu), story.one(Protection), story.one(Plan)
    return (damage(menu, sweep, plan.low),) if menu and sweep and plan and sweep.alone else ()


def _law(story: Story) -> tuple[Part, ...]:
    law = story.one(Law)
    return law_parts(law) if law else ()


def _provenance(story: Story) -> tuple[Part, ...]:
    return (provenance(story),) if story.records else ()


SECTIONS: tuple[Section, ...] = (
    Section(
        "cost",
        "What it costs",
        "The same text under the float model, with everything low, and with the plan.",
        ("evaluate float", "evaluate naive", "evaluate plan", "continue"),
        _cost,
    ),
    Section(
        "study",
        "Protection, controls and other methods",
        "The same text under every way to store the model that the study compares.",
        (),
        _study,
    ),
    Section(
        "spikes",
        "Where the spikes are",
        "A spike is a stream in which a few tokens tower over the rest, so that a scale shared by all tokens starves "
        "the ordinary ones.",
        ("profile",),
        _spikes,
    ),
    Section(
        "recovery",
        "What protection buys",
        "The dearest sites are protected one after the other and the loss is measured each time.",
        ("plan",),
        _recovery,
    ),
    Section("plan", "The plan", "Which scheme every site has.", ("plan",), _plan),
    Section(
        "damage",
        "Predicted and measured",
        "Before anything is measured, one pass predicts what each site would cost alone. The dearest are measured too.",
        ("damage", "plan"),
        _damage,
    ),
    Section("law", "The law", "What larger models, other shares and other block sizes would cost.", (), _law),
    Section(
        "provenance", "Provenance", "What decides these numbers: the same inputs give the same page.", (), _provenance
    ),
)
"""In the order of the page."""
