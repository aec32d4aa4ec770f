"""The sections of a page: each a function from the story to its parts.

What another kind of record has to show is one more function in `PARTS`, and its title and lead in `sections.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from qarat.stages.spikes import find_spikes
from qarat.surfaces.page.figures.base import Part
from qarat.surfaces.page.figures.damage import damage
from qarat.surfaces.page.figures.grids import grids
from qarat.surfaces.page.figures.outcome import outcome
from qarat.surfaces.page.figures.profile import profile
from qarat.surfaces.page.figures.recovery import recovery
from qarat.surfaces.page.figures.spike_map import spike_map
from qarat.surfaces.page.figures.strip import strip
from qarat.surfaces.page.law import law_parts
from qarat.surfaces.page.provenance import provenance
from qarat.surfaces.page.story import Story
from qarat.surfaces.page.study import study_parts
from qarat.surfaces.page.verdict import low_input
from qarat.surfaces.tables.choices import not_low
from qarat.surfaces.tables.html import element, paragraph, part_html, table_html
from qarat.surfaces.tables.scores import show_continuations
from qarat.surfaces.tables.wording import count
from qarat.values.formats import FORMATS
from qarat.values.plans import Assignment, Plan
from qarat.values.records.law import Law
from qarat.values.records.prices import Menu, Protection
from qarat.values.records.scores import Continuations
from qarat.values.records.spike_study import SpikeStudy
from qarat.values.records.streams import ActivationStats, StreamStats
from qarat.values.requests.protect import PLANNING_RULES
from qarat.values.schemes import TensorScheme

_SPIKES = 4  # streams whose profile and grids are shown


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


def _cost(story: Story) -> tuple[Part, ...]:
    parts: list[Part] = []
    sweep, continuations = story.one(Protection), story.one(Continuations)
    if len(story.evaluations) > 1:
        budget = (sweep.budget_nats, f"budget {sweep.budget}") if sweep else None
        parts.append(outcome(story.evaluations, budget))
    if continuations and continuations.texts:
        passages = next(show_continuations(continuations))
        parts.append(part_html(passages._replace(title="The same prompt, continued greedily")))
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
    kept = element("div", table_html(not_low(plan, sweep)), class_="scroll", tabindex="0")
    return (strip(plan), kept) if plan.exceptions() else (strip(plan),)


def _damage(story: Story) -> tuple[Part, ...]:
    menu, sweep, plan = story.one(Menu), story.one(Protection), story.one(Plan)
    return (damage(menu, sweep, plan.low),) if menu and sweep and plan and sweep.alone else ()


def _law(story: Story) -> tuple[Part, ...]:
    law = story.one(Law)
    return tuple(law_parts(law)) if law else ()


def _provenance(story: Story) -> tuple[Part, ...]:
    return (provenance(story),) if story.records else ()


SECTIONS = msgspec.json.decode((Path(__file__).parent / "sections.json").read_bytes(), type=dict[str, Section])
"""By their places on the page, in its order."""
PARTS: dict[str, Callable[[Story], tuple[Part, ...]]] = {
    "cost": _cost,
    "study": _study,
    "spikes": _spikes,
    "recovery": _recovery,
    "plan": _plan,
    "damage": _damage,
    "law": _law,
    "provenance": _provenance,
}
"""The parts of each; none where the story has nothing for it."""
