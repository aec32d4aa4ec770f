"""A spike study on the page: what it says, the figures that it rests on, and what is known or missing beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from qarat.jobs.spike_study.arms import NAIVE, PROTECTED
from qarat.jobs.spike_study.published import CAVEAT, published_of
from qarat.jobs.spike_study.verdicts import duels, steadied, verdict_lines
from qarat.surfaces.page.figures.base import Figure, Folded, Part
from qarat.surfaces.page.figures.study import ELSEWHERE, SHOWN, arms_of, duels_of, elsewhere_of, orders_of, six_bits
from qarat.surfaces.tables.data import table, texts
from qarat.surfaces.tables.html import element, paragraph, prose, scrolled
from qarat.surfaces.tables.wording import count, fixed, sites_listed
from qarat.values.records.spike_study import SpikeStudy, setting_words
from qarat.values.records.streams import ActivationStats

_BESIDE = (NAIVE, PROTECTED, "smooth", "prefix")  # arms that published figures have counterparts of


def study_parts(study: SpikeStudy, stats: ActivationStats | None) -> tuple[Part, ...]:
    """A study, finished or not, from its verdict to what could not be measured.

    Args:
        study: The record.
        stats: What its protected sites were found with; None where they are not at hand.
    """
    parts: list[Part] = list(_points(verdict_lines(study)))
    first = [s for s in study.settings if s in (study.main, study.twin)]
    for setting in first:
        parts += _figures(study, setting)
    parts += [six_bits(study)] if steadied(study) else []
    others = tuple(f for s in study.settings if s not in first for f in _figures(study, s))
    if others:
        parts.append(Folded(f"What weights and inputs share a scale over: {count(len(others), 'more figure')}", others))
    parts += _published(study, stats)
    parts += _failed(study)
    return (*parts, *(paragraph(f"Left out, {left.what}: {left.why}.") for left in study.left))


def _figures(study: SpikeStudy, setting: str) -> Iterator[Figure]:
    """What there is to see of a setting so far."""
    if study.of_group(setting, *SHOWN):
        yield arms_of(study, setting)
    if study.of_group(setting, "order"):
        yield orders_of(study, setting)
    if duels(study, setting):
        yield duels_of(study, setting)
    if study.of_group(setting, *ELSEWHERE):
        yield elsewhere_of(study, setting)


def _points(lines: Sequence[str]) -> Iterator[str]:
    """Paragraphs; indented lines are a list below the one before them."""
    for inner, group in groupby(lines, key=lambda line: line.startswith(" ")):
        sentences = [line.strip() + "." for line in group]
        if inner:
            yield element("ul", *(element("li", prose(line)) for line in sentences))
        else:
            yield from map(paragraph, sentences)


def _published(study: SpikeStudy, stats: ActivationStats | None) -> Iterator[str]:
    """Published figures of this checkpoint, and below them the study's own; nothing where none is known."""
    rows = [tuple(row) for row in published_of(study.name).rows]
    if not rows:
        return
    source = f"this study, {study.provenance.convention}"
    if stats is not None:
        large = [s for s in stats.streams.values() if s.kind.endswith("_in") and s.ratio > 64]
        figure = ", ".join(f"{s.block}.{s.kind} {fixed(s.ratio, 0)}" for s in sorted(large, key=lambda s: -s.ratio))
        rows.append((study.name, "r of the inputs above 64", figure or "none", source))
    for setting in study.settings:
        arms = [a for a in (study.find(setting, label) for label in _BESIDE) if a is not None]
        if arms:
            figure = ", ".join(f"{a.label} {fixed(study.perplexity(a), 3)}" for a in arms)
            base = fixed(study.floats[arms[0].tokens].perplexity, 3)
            rows.append((study.name, f"perplexity, {setting_words(setting)}", f"{figure} (float {base})", source))
    yield element("h3", "Published for this checkpoint, and measured here")
    yield scrolled(table(texts("model", "what, and its scheme", "figure", "source"), rows), "Published figures")
    yield paragraph(CAVEAT)


def _failed(study: SpikeStudy) -> Iterator[str]:
    """The arms that have no number, and why."""
    failed = [a for a in study.arms if a.failure]
    if failed:
        rows = ((a.label, setting_words(a.setting), sites_listed(a.protected, "nothing"), a.failure) for a in failed)
        yield element("h3", f"Could not be measured: {count(len(failed), 'arm')}")
        yield scrolled(table(texts("arm", "setting", "protected", "why"), rows), "Arms that could not be measured")
