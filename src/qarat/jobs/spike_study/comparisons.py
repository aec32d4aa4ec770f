"""What a study's arms come to beside each other: pure functions of the record."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from qarat.jobs.spike_study.arms import ALONE, ANY_KIND, EVERY_DOWN, NAIVE, PROTECTED, PROTECTED_IN, SAME_KIND
from qarat.values.records.origin import Difference
from qarat.values.records.spike_study import SpikeArm, SpikeStudy, brief_setting

FP8_MARGIN = 0.002  # of perplexity: within so much, FP8 is taken to be as good as float

Inside = Literal["yes", "estimate only", "no"]
Winner = Literal["protection", "equal within error", "method", "no error known"]
"""Of a `Duel`."""


class SettingOutcome(NamedTuple):
    """What the arms of one setting come to.

    Attributes:
        setting: Low scheme.
        naive: Loss over float.
        protected: Loss over float.
        restored: Share of naive's loss that protection gives back; NaN where naive loses nothing.
        within: Whether protection keeps the budget.
        controls: Random controls.
        beaten: Of those, how many lie above protection's 95 % interval, and the paired difference's above 0.
        closest: The random control that loses least; None where there is none.
        fp8: How much E4M3 loses over float protection; None where it was not measured.
        fp8_within: Whether that is within `FP8_MARGIN` of perplexity, in either direction (`inside`).
    """

    setting: str
    naive: Difference
    protected: Difference
    restored: float
    within: Inside
    controls: int
    beaten: int
    closest: SpikeArm | None
    fp8: Difference | None
    fp8_within: Inside


class Duel(NamedTuple):
    """Protection against one method alone.

    Attributes:
        arm: Of the method.
        loss: The method's, over float.
        over: The method's loss over protection's; above 0 protection wins.
        together: Loss over float of both; None where it was not measured.
    """

    arm: SpikeArm
    loss: Difference
    over: Difference
    together: Difference | None

    @property
    def winner(self) -> Winner:
        """Who loses less; ``no error known`` where one source gives none."""
        if math.isnan(self.over.standard_error):
            return "no error known"
        low, high = self.over.interval
        return "equal within error" if low <= 0 <= high else "protection" if low > 0 else "method"


class Ablated(NamedTuple):
    """One part alone low.

    Attributes:
        part: ``attention``, ``MLP`` or a kind of projection.
        arm: Of it.
        low: Its share of the sites' parameters.
        loss: Over float.
        share: Of what everything low loses; NaN where that is not known or nothing.
    """

    part: str
    arm: SpikeArm
    low: float
    loss: Difference
    share: float


class Steadied(NamedTuple):
    """A remedy for 6 bits: the arm behind it, and its loss over float."""

    arm: SpikeArm
    loss: Difference

    @property
    def remedy(self) -> str:
        """Bits, what shares a weight's and an input's scale, and what is done beside."""
        return f"{brief_setting(self.arm.scheme)}: {self.arm.label}"

    @property
    def effort(self) -> int:
        """Cost at run time: 0 nothing, 1 float weights or a prefix, 2 scales found, 3 a rotation or float columns."""
        arm = self.arm
        if "outliers" in arm.scheme or "hadamard" in arm.transforms:
            return 3
        return 2 if "static" not in arm.scheme else 1 if arm.protected or arm.prefix else 0


def inside(loss: Difference, high: float, low: float = -math.inf) -> Inside:
    """Whether a difference is known to lie within limits: its whole 95 % interval, or the estimate alone.

    An interval that is not known, of a text from one source, shows nothing.

    Args:
        loss: In nats.
        high: Limit in nats, itself allowed.
        low: As ``high``.
    """
    if not low <= loss.nats <= high:
        return "no"
    return "yes" if all(low <= end <= high for end in loss.interval) else "estimate only"


def outcome_of(study: SpikeStudy, setting: str) -> SettingOutcome | None:
    """What a setting's arms come to; None where nothing was protected in it."""
    naive, protected = study.find(setting, NAIVE), study.find(setting, PROTECTED)
    if naive is None or protected is None:
        return None
    lost, kept = study.over_float(naive), study.over_float(protected)
    controls = [a for a in study.of_group(setting, "control") if a.label.startswith((SAME_KIND, ANY_KIND))]
    high = kept.interval[1]
    beaten = [a for a in controls if study.over_float(a).nats > high and study.over(a, protected).interval[0] > 0]
    e4m3 = study.find(setting, PROTECTED_IN["fp8"])
    fp8 = None if e4m3 is None else study.over(e4m3, protected)
    return SettingOutcome(
        setting,
        lost,
        kept,
        (lost.nats - kept.nats) / lost.nats if lost.nats > 0 else math.nan,
        inside(kept, study.budget_nats),
        len(controls),
        len(beaten),
        min(controls, key=lambda a: study.over_float(a).nats, default=None),
        fp8,
        "no" if fp8 is None else inside(fp8, math.log1p(FP8_MARGIN), math.log1p(-FP8_MARGIN)),
    )


def ablated(study: SpikeStudy, setting: str) -> tuple[Ablated, ...]:
    """What each part of a setting loses alone low: attention and the MLP, then kinds of projection."""
    naive = study.find(setting, NAIVE)
    whole = math.nan if naive is None else study.over_float(naive).nats
    results: list[Ablated] = []
    for arm in study.of_group(setting, "ablation"):
        loss = study.over_float(arm)
        share = loss.nats / whole if whole > 0 else math.nan
        results.append(Ablated(arm.label.removesuffix(ALONE), arm, 1 - arm.share, loss, share))
    return tuple(results)


def duels(study: SpikeStudy, setting: str) -> tuple[Duel, ...]:
    """Protection against every method of a setting, the method that loses least first."""
    protected = study.find(setting, PROTECTED)
    if protected is None:
        return ()
    results: list[Duel] = []
    for arm in study.of_group(setting, "method"):
        if not arm.protected:
            both = study.find(setting, f"{arm.label} + protected")
            together = None if both is None else study.over_float(both)
            results.append(Duel(arm, study.over_float(arm), study.over(arm, protected), together))
    return tuple(sorted(results, key=lambda d: d.loss.nats))


def steadied(study: SpikeStudy) -> tuple[Steadied, ...]:
    """What was tried to make 6 bits steady, the smallest loss first; naive is where each setting begins."""
    tried = [
        arm
        for arm in study.arms
        if arm.setting.startswith("w=int6")
        and not arm.failure
        and (
            arm.group in ("naive", "method")
            or arm.label in (PROTECTED, EVERY_DOWN)
            or (arm.group == "order" and arm.label.startswith("by damage"))
        )
    ]
    # Methods with a scheme for inputs of their own are the same arm in several settings.
    results = {steady.remedy: steady for steady in (Steadied(arm, study.over_float(arm)) for arm in tried)}
    return tuple(sorted(results.values(), key=lambda s: s.loss.nats))


class InFront(NamedTuple):
    """The first tokens in float, in windows that begin with a token of their own, where the study's do not.

    Attributes:
        tokens: Which windows.
        naive: Loss over float there.
        prefix: Loss over float there, the first tokens in float.
        protected: Loss over float there, the protected sites in float; None where there are none.
    """

    tokens: str
    naive: Difference
    prefix: Difference
    protected: Difference | None


def in_front(study: SpikeStudy, setting: str) -> InFront | None:
    """What a prefix in other windows than the study's comes to; None where that was not measured."""
    arms = study.of_group(setting, "bos")
    prefix = next((a for a in arms if a.prefix and not a.protected), None)
    if prefix is None:
        return None
    beside = [a for a in arms if a.tokens == prefix.tokens and not a.prefix]
    naive = next((study.over_float(a) for a in beside if not a.protected), None)
    protected = next((study.over_float(a) for a in beside if a.protected), None)
    return None if naive is None else InFront(prefix.tokens, naive, study.over_float(prefix), protected)
