"""A spike study's arms side by side, its orders and duels, other tokens, and what makes 6 bits steady."""

from __future__ import annotations

import math

from qarat.jobs.spike_study.arms import NAIVE, PROTECTED
from qarat.jobs.spike_study.verdicts import Duel, duels, steadied
from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import curve
from qarat.surfaces.page.figures.intervals import Arm, intervals
from qarat.surfaces.page.figures.series import Axis, Dot, Series
from qarat.surfaces.tables.spike_study import notes_of
from qarat.surfaces.tables.wording import count, fixed, perplexity_change, share
from qarat.values.records.origin import Difference
from qarat.values.records.spike_study import SpikeArm, SpikeStudy, brief_setting, setting_words
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
        limit=(study.budget_nats, f"budget {study.budget}"),
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
