"""A spike study's arms side by side, and what makes 6 bits steady."""

from __future__ import annotations

import math

from qarat.records import Difference
from qarat.report.layout import count, fixed, perplexity_change, share
from qarat.report.page.figures.base import Figure
from qarat.report.page.figures.intervals import Arm, intervals
from qarat.spikestudies import SpikeStudy, StudyArm, brief_setting, setting_words
from qarat.spikestudy.verdicts import steadied

__all__ = ["SHOWN", "arms_of", "six_bits"]

SHOWN = ("naive", "protection", "control", "method")
"""Groups of arms that are drawn; orders are in the recovery curve and the record."""
_REMEDIES = 12
_COLUMNS = ("perplexity change (%)", "parameters protected (%)", "bits per weight")


def arms_of(study: SpikeStudy, setting: str) -> Figure:
    """Every arm of a setting with its loss over float, the smallest first.

    Args:
        study: Finished or not.
        setting: Low scheme.
    """
    found = sorted(((study.over_float(a), a) for a in study.of_group(setting, *SHOWN)), key=lambda pair: pair[0].nats)
    return intervals(
        f"study-{brief_setting(setting).replace(' ', '-')}",
        f"Protection, controls and methods in {setting_words(setting)}",
        f"Loss over float on {_tokens(study)}. Bars: 95 %, paired by window. Random controls protect as many "
        "sites of the same kind, or sites of any kind.",
        [_arm(a.label, loss, a) for loss, a in found],
        unit="nats per token",
        reference=0.0,
        limit=(study.budget_nats, f"budget {study.budget}"),
        groups=SHOWN,
        columns=_COLUMNS,
    )


def six_bits(study: SpikeStudy) -> Figure:
    """The remedies for 6 bits that lose least, one below the other."""
    tried = steadied(study)
    return intervals(
        "study-six",
        "What makes 6 bits steady",
        f"The best {min(_REMEDIES, len(tried))} of {count(len(tried), 'remedy' if len(tried) == 1 else 'trial')}; "
        "bits, what weights and inputs share a scale over, and what is done beside.",
        [_arm(s.remedy, s.loss, s.arm) for s in tried[:_REMEDIES]],
        unit="nats per token",
        reference=0.0,
        limit=(study.budget_nats, f"budget {study.budget}"),
        groups=SHOWN,
        columns=_COLUMNS,
    )


def _arm(label: str, loss: Difference, arm: StudyArm) -> Arm:
    low, high = loss.interval if math.isfinite(loss.standard_error) else (math.nan, math.nan)
    details = (perplexity_change(loss.nats), share(arm.share, 1, 2), fixed(arm.bits, 3))
    return Arm(label, loss.nats, low, high, arm.group if arm.group in SHOWN else "protection", details)


def _tokens(study: SpikeStudy) -> str:
    base = next(iter(study.floats.values()))
    return f"{count(len(base.nats), 'window')} of {count(len(set(base.sources)), 'source')} that no choice has seen"
