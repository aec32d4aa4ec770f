"""A spike study on the page: what it says, the figures that it rests on, and what is known or missing beside them.

The figures are its arms side by side, its orders and duels, other tokens, and what makes 6 bits steady.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from qarat.jobs.spike_study.arms import ATTENTION, MLP, NAIVE, PROTECTED
from qarat.jobs.spike_study.comparisons import Duel, ablated, duels, steadied
from qarat.jobs.spike_study.published import CAVEAT, published_of
from qarat.jobs.spike_study.verdicts import verdict_lines
from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.page.figures.intervals import Arm, intervals
from qarat.surfaces.page.parts import Folded, Listed, Part, Titled
from qarat.surfaces.tables.data import table, texts
from qarat.surfaces.tables.spike_study import notes_of
from qarat.surfaces.tables.wording import count, fixed, perplexity_change, share, sites_listed
from qarat.values.records.origin import Difference
from qarat.values.records.spike_study import SpikeArm, SpikeStudy, brief_setting, setting_words
from qarat.values.records.streams import ActivationStats
from qarat.values.sites import short_name

SHOWN = ("protection", "naive", "control", "method")
"""Groups of arms that are drawn beside each other, in the order of the colours; orders, BOS and calibration have
figures of their own."""
ELSEWHERE = {"bos": "BOS by other rules", "calibration": "scales from another kind of text"}
"""Groups of arms under other tokens, or with scales from others, and what they are in words."""
_ORDERS = {"damage": "Fisher", "snr": "SNR", "ratio": "r"}  # the statistics as one says them
_REMEDIES = 12
_COLUMNS = ("perplexity change (%)", "parameters protected (%)", "bits per weight")
_WINNERS = ("protection", "method", "equal within error", "no error known")


def arms_of(study: SpikeStudy, setting: str) -> Figure:
    """Every arm of a setting with its loss over float, the smallest first.

    Args:
        study: Finished or not.
        setting: Low scheme.
    """
    ranked = sorted(((study.over_float(a), a) for a in study.of_group(setting, *SHOWN)), key=lambda pair: pair[0].nats)
    return _losses(
        study,
        _key("study", setting),
        f"Protection, controls and methods in {setting_words(setting)}",
        f"Loss over float on {_tokens(study)}. Bars: 95 %, paired by window. Random controls protect as many "
        "sites of the same kind, or sites of any kind.",
        [_arm(a.label, loss, a) for loss, a in ranked],
    )


def orders_of(study: SpikeStudy, setting: str) -> Figure:
    """What is lost with the first k sites of each order in float, on the report tokens.

    Args:
        study: With orders in this setting.
        setting: Low scheme.
    """
    naive = study.find(setting, NAIVE)
    orders: dict[str, list[tuple[int, SpikeArm]]] = {}
    for arm in study.of_group(setting, "order"):
        order, _, k = arm.label.removeprefix("by ").partition(", k=")
        orders.setdefault(order, [(0, naive)] if naive else []).append((int(k), arm))
    series = [Series(f"by {_ORDERS.get(order, order)}", _order_dots(study, ranked)) for order, ranked in orders.items()]
    # What sets the orders apart lies far below naive's loss; a logarithm has no place for a gain or a budget of 0.
    positive = min(study.budget_nats, *(d.y for s in series for d in s.dots)) > 0
    return curve(
        _key("study-orders", setting),
        f"The first k sites in float, by what ranks them, in {setting_words(setting)}",
        f"Loss over float on {_tokens(study)}; k = 0 is naive. Bars: 95 %, paired by window. Fisher is the damage "
        "predicted per parameter, the others are statistics of what a site reads; sites that read the same rank alike.",
        series,
        Axis("sites in float, k", ticks=tuple(sorted({d.x for s in series for d in s.dots})), digits=0),
        Axis("loss over float (nats per token)", log=positive, digits=4, zero=True),
        noun="adds",
        limits=[(study.budget_nats, f"budget {study.budget}")],
    )


def duels_of(study: SpikeStudy, setting: str) -> Figure:
    """Every method alone against protection alone, in pairs.

    Args:
        study: With protection and methods in this setting.
        setting: Low scheme.
    """
    against = sorted(duels(study, setting), key=lambda d: d.over.nats)
    notes = "".join(f" {note}." for note in notes_of([d.arm for d in against]))
    return intervals(
        _key("study-duels", setting),
        f"Methods against protection in {setting_words(setting)}",
        "How much more a method alone loses than protection alone: right of zero protection wins. Bars: 95 %, paired "
        f"by window.{notes}",
        [_duel(d) for d in against],
        unit="loss over protection (nats per token)",
        reference=0.0,
        groups=_WINNERS,
        columns=("alone over float (nats)", "± SE (nats)", "with protection over float (nats)", "wins"),
    )


def ablation_of(study: SpikeStudy, setting: str) -> Figure:
    """One part of every block alone low, the dearest first.

    Args:
        study: With such arms in this setting.
        setting: Low scheme.
    """
    parts = sorted(ablated(study, setting), key=lambda p: -p.loss.nats)
    return intervals(
        _key("study-ablation", setting),
        f"One part alone low, in {setting_words(setting)}",
        f"Loss over float on {_tokens(study)}. Bars: 95 %, paired by window. Attention is q, k, v and o together, the "
        "MLP the others; losses of parts need not add up.",
        [
            Arm(
                p.part,
                p.loss.nats,
                *_interval(p.loss),
                "part" if p.part in (ATTENTION, MLP) else "kind of projection",
                (perplexity_change(p.loss.nats), share(p.low, 1), fixed(100 * p.share, 0)),
            )
            for p in parts
        ],
        unit="nats per token",
        reference=0.0,
        groups=("part", "kind of projection"),
        columns=("perplexity change (%)", "parameters low (%)", "of what naive loses (%)"),
        noun="part",
    )


def elsewhere_of(study: SpikeStudy, setting: str) -> Figure:
    """Naive and protected with BOS by other rules, or scales from another kind of text, below the study's own.

    Args:
        study: With such arms in this setting.
        setting: Low scheme.
    """
    arms = study.of_group(setting, *ELSEWHERE)
    subject = " and ".join(name for group, name in ELSEWHERE.items() if any(a.group == group for a in arms))
    own = [a for a in (study.find(setting, NAIVE), study.find(setting, PROTECTED)) if a is not None]
    notes = "".join(f" {note}." for note in notes_of(arms))
    return _losses(
        study,
        _key("study-elsewhere", setting),
        f"{subject[0].upper()}{subject[1:]} in {setting_words(setting)}",
        f"Loss over float on the same tokens. Bars: 95 %, paired by window.{notes}",
        [
            *(_arm(f"as the study was asked: {a.label}", study.over_float(a), a) for a in own),
            *(_arm(a.label, study.over_float(a), a) for a in arms),
        ],
    )


def six_bits(study: SpikeStudy) -> Figure:
    """The remedies for 6 bits that lose least, one below the other."""
    tried = steadied(study)
    return _losses(
        study,
        "study-six",
        "What makes 6 bits steady",
        f"The best {min(_REMEDIES, len(tried))} of {count(len(tried), 'remedy' if len(tried) == 1 else 'trial')}; "
        "bits, what weights and inputs share a scale over, and what is done beside.",
        [_arm(s.remedy, s.loss, s.arm) for s in tried[:_REMEDIES]],
    )


def _losses(study: SpikeStudy, key: str, title: str, caption: str, arms: list[Arm]) -> Figure:
    return intervals(
        key,
        title,
        caption,
        arms,
        unit="nats per token",
        reference=0.0,
        limit=(study.budget_nats, f"budget {study.budget}"),
        groups=SHOWN,
        columns=_COLUMNS,
    )


def _key(figure: str, setting: str) -> str:
    return f"{figure}-{brief_setting(setting).replace(' ', '-')}"


def _arm(label: str, loss: Difference, arm: SpikeArm) -> Arm:
    details = (perplexity_change(loss.nats), share(arm.share, 1, 2), fixed(arm.bits, 3))
    group = arm.group if arm.group in SHOWN else "protection" if arm.protected else "naive"
    return Arm(label, loss.nats, *_interval(loss), group, details)


def _duel(duel: Duel) -> Arm:
    together = "" if duel.together is None else fixed(duel.together.nats, 4, sign=True)
    alone = (fixed(duel.loss.nats, 4, sign=True), fixed(duel.loss.standard_error, 4))
    return Arm(duel.arm.label, duel.over.nats, *_interval(duel.over), duel.winner, (*alone, together, duel.winner))


def _order_dots(study: SpikeStudy, arms: list[tuple[int, SpikeArm]]) -> tuple[Dot, ...]:
    """A dot for each k, with the sites that the one before did not protect."""
    before: tuple[str, ...] = ()
    dots: list[Dot] = []
    for k, arm in arms:
        loss = study.over_float(arm)
        new = [short_name(site) for site in arm.protected if site not in before]
        dots.append(Dot(k, loss.nats, y_range=_interval(loss), label=", ".join(new) or "nothing protected"))
        before = arm.protected
    return tuple(dots)


def _interval(loss: Difference) -> tuple[float, float]:
    return loss.interval if math.isfinite(loss.standard_error) else (math.nan, math.nan)


def _tokens(study: SpikeStudy) -> str:
    base = next(iter(study.floats.values()))
    return f"{count(len(base.nats), 'window')} of {count(len(set(base.sources)), 'source')} that no choice has seen"


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
    return (*parts, *(f"Left out, {left.what}: {left.why}." for left in study.left))


def _figures(study: SpikeStudy, setting: str) -> Iterator[Figure]:
    """What there is to see of a setting so far."""
    if study.of_group(setting, *SHOWN):
        yield arms_of(study, setting)
    if study.of_group(setting, "order"):
        yield orders_of(study, setting)
    if duels(study, setting):
        yield duels_of(study, setting)
    if study.of_group(setting, "ablation"):
        yield ablation_of(study, setting)
    if study.of_group(setting, *ELSEWHERE):
        yield elsewhere_of(study, setting)


def _points(lines: Sequence[str]) -> Iterator[Part]:
    """Paragraphs; indented lines are a list below the one before them."""
    for inner, group in groupby(lines, key=lambda line: line.startswith(" ")):
        sentences = [line.strip() + "." for line in group]
        if inner:
            yield Listed(sentences)
        else:
            yield from sentences


def _published(study: SpikeStudy, stats: ActivationStats | None) -> Iterator[Part]:
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
    published = table(texts("model", "what, and its scheme", "figure", "source"), rows)
    yield Titled("Published for this checkpoint, and measured here", published)
    yield CAVEAT


def _failed(study: SpikeStudy) -> Iterator[Part]:
    """The arms that have no number, and why."""
    failed = [a for a in study.arms if a.failure]
    if failed:
        rows = ((a.label, setting_words(a.setting), sites_listed(a.protected, "nothing"), a.failure) for a in failed)
        arms = table(texts("arm", "setting", "protected", "why"), rows)
        yield Titled(f"Could not be measured: {count(len(failed), 'arm')}", arms)
