"""What a study's arms say together: pure functions of the record."""

from __future__ import annotations

import math
import shlex
from typing import Literal, NamedTuple

import msgspec

from qarat.jobs.spike_study.arms import ANY_KIND, EVERY_DOWN, NAIVE, PROTECTED, PROTECTED_IN, SAME_KIND
from qarat.values.records.origin import Difference, Z
from qarat.values.records.spike_study import SpikeArm, SpikeStudy, brief_setting, setting_words
from qarat.values.sites import short_name

FP8_MARGIN = 0.002  # of perplexity: within so much, FP8 is taken to be as good as float
_SLACK = 0.05  # of the twin's naive loss; a gain below it is not worth a dearer remedy


Inside = Literal["yes", "estimate only", "no"]
_INSIDE = {"yes": "within {}", "estimate only": "not shown within {} (the estimate is)", "no": "not within {}"}


class SettingSays(msgspec.Struct, frozen=True):
    """What the arms of one setting say of protection.

    Attributes:
        setting: Low scheme.
        naive: Loss over float.
        protected: Loss over float.
        restored: Share of naive's loss that protection gives back; NaN where naive loses nothing.
        within: Whether protection keeps the budget (`inside`).
        controls: Random controls.
        beaten: Of those, how many protection beats: the control lies above its 95 % interval, and the interval of their
            paired difference above 0.
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
    def winner(self) -> str:
        """``protection``, ``method``, or ``equal within error``; ``no error known`` where one source gives none."""
        if math.isnan(self.over.standard_error):
            return "no error known"
        low, high = self.over.interval
        return "equal within error" if low <= 0 <= high else "protection" if low > 0 else "method"


class Steadied(NamedTuple):
    """A remedy for 6 bits.

    Attributes:
        remedy: Bits, what shares a weight's and an input's scale, and what is done beside.
        arm: The arm behind it.
        loss: Over float.
        effort: What it costs to run, smaller is cheaper: 0 nothing, 1 weights in float or a prefix kept, 2 scales found
            at run time, 3 a rotation or float columns at run time.
    """

    remedy: str
    arm: SpikeArm
    loss: Difference
    effort: int


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


def said_of(study: SpikeStudy, setting: str) -> SettingSays | None:
    """What a setting's arms say; None where nothing was protected in it."""
    naive, protected = study.find(setting, NAIVE), study.find(setting, PROTECTED)
    if naive is None or protected is None:
        return None
    lost, kept = study.over_float(naive), study.over_float(protected)
    controls = [a for a in study.of_group(setting, "control") if a.label.startswith((SAME_KIND, ANY_KIND))]
    high = kept.interval[1]
    beaten = [a for a in controls if study.over_float(a).nats > high and study.over(a, protected).interval[0] > 0]
    e4m3 = study.find(setting, PROTECTED_IN["fp8"])
    fp8 = None if e4m3 is None else study.over(e4m3, protected)
    return SettingSays(
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
    results = {_remedy(arm): Steadied(_remedy(arm), arm, study.over_float(arm), _effort(arm)) for arm in tried}
    return tuple(sorted(results.values(), key=lambda s: s.loss.nats))


def recommend(study: SpikeStudy) -> str:
    """Which remedy for 6 bits to take, in words."""
    tried = steadied(study)
    naive = study.find(study.twin, NAIVE)
    if not tried or naive is None:
        return ""
    # What is chosen among so many on the tokens it is quoted on has to hold with its whole interval.
    within = [s for s in tried if inside(s.loss, study.budget_nats) == "yes"]
    if within:
        best = min(within, key=lambda s: (s.effort, s.arm.bits, s.loss.nats))
        sentence = f"6 bits: take {_remedy_words(study, best.arm)}; it keeps {study.budget} at {_said(best.loss)}"
        return sentence + _how(study, best.arm)
    allowed = tried[0].loss.nats + _SLACK * max(0.0, study.over_float(naive).nats)
    near = [s for s in tried if s.loss.nats <= allowed]
    best = min(near, key=lambda s: (s.effort, s.arm.bits, s.loss.nats))
    return (
        f"6 bits: nothing that was tried keeps {study.budget} with its whole interval; "
        f"{_remedy_words(study, best.arm)} comes to "
        f"{_said(best.loss)}, where naive loses {_said(study.over_float(naive))}{_how(study, best.arm)}. "
        "Take 8 bits where that is too much"
    )


def _how(study: SpikeStudy, arm: SpikeArm) -> str:
    """What makes the model of a recommended arm; a run without sites to name would choose some by itself."""
    if arm.protected:
        return f": {command(study, arm)} (with the study's text options)"
    transforms = f", --transform {' '.join(arm.transforms)}" if arm.transforms else ""
    prefix = f", --prefix {arm.prefix}" if arm.prefix else ""
    return f": low scheme '{arm.scheme}'{transforms}{prefix}, nothing protected"


def command(study: SpikeStudy, arm: SpikeArm) -> str:
    """The command that makes the model of an arm whose protected sites are in float."""
    arguments = ["qarat", "run", study.name, "--low", arm.scheme]
    arguments += ["--sites", *map(short_name, arm.protected)] if arm.protected else []
    arguments += ["--transform", *arm.transforms] if arm.transforms else []
    arguments += ["--prefix", str(arm.prefix)] if arm.prefix else []
    return shlex.join(arguments)


def verdict_lines(study: SpikeStudy) -> tuple[str, ...]:
    """The verdict: the main setting in a sentence, its twin, FP8, the methods, and 6 bits."""
    lines: list[str] = []
    if not study.sites:
        lines += _nothing(study)
    elif not any(rule.flagged for rule in study.rules):
        lines += _no_spikes(study)
    for setting in (study.main, study.twin):
        says = said_of(study, setting)
        lines += [] if says is None else _protection(study, says)
        against = duels(study, setting)
        lines += [_duel_line(against)] if against else []
    lines += [recommend(study)]
    return tuple(line for line in lines if line)


def _nothing(study: SpikeStudy) -> list[str]:
    flagged = {s for rule in study.rules for s in rule.flagged}
    spikes = (
        f"the spike rules flag {', '.join(sorted(map(_short_stream, flagged)))}"
        if flagged
        else f"none of {len(study.rules)} spike rules flags a stream"
    )
    naive = study.find(study.main, NAIVE)
    lost = "" if naive is None else f", and naive loses {_said(study.over_float(naive))} on the report tokens"
    within = naive is None or study.over_float(naive).nats <= study.budget_nats
    begin = "There is nothing to protect" if within else "No protection that was tried helps"
    return [f"{begin}: {spikes}{lost}. The planner: {study.chosen}"]


def _no_spikes(study: SpikeStudy) -> list[str]:
    naive, first = study.find(study.main, NAIVE), study.find(study.main, "by damage, k=1")
    lost = "" if naive is None else f". Naive loses {_said(study.over_float(naive))}"
    if naive is not None and first is not None:
        naive_nats = study.over_float(naive).nats
        if naive_nats > 0:  # of nothing lost there is no share
            gain = naive_nats - study.over_float(first).nats
            lost += f", spread over many sites: the dearest alone gives back {100 * gain / naive_nats:.0f} %"
    rules = f"none of {len(study.rules)} spike rules flags a stream"
    return [f"There is no spike to protect: {rules}{lost}"]


def _protection(study: SpikeStudy, says: SettingSays) -> list[str]:
    names = ", ".join(map(short_name, study.sites))
    restored = "" if math.isnan(says.restored) else f", {100 * says.restored:.0f} % of the loss restored"
    budget = _INSIDE[says.within].format(study.budget)
    setting, kept = setting_words(says.setting), _said(says.protected)
    lines = [f"{setting}: naive loses {_said(says.naive)}; {names} in float {kept}{restored}, {budget}"]
    if says.closest is not None:
        closest = study.over_float(says.closest)
        worse = (
            "no error is known, as the report text is one source"
            if math.isnan(closest.standard_error)
            else f"{says.beaten} of {says.controls} are worse beyond the 95 % interval"
        )
        lines.append(
            f"  Random controls: {worse}; the closest, {says.closest.label.partition(': ')[2]}, loses {_said(closest)}"
        )
    if says.fp8 is not None:
        lines.append(
            f"  E4M3 instead of float: {100 * math.expm1(says.fp8.nats):+.2f} % perplexity{_error(says.fp8)}, "
            f"{_INSIDE[says.fp8_within].format(f'±{100 * FP8_MARGIN:g} %')}"
        )
    return lines


def _duel_line(against: tuple[Duel, ...]) -> str:
    verbs = {
        "protection": "protection beats",
        "equal within error": "equal within error are",
        "method": "protection is beaten by",
        "no error known": "without a known error are",
    }
    parts = [
        f"{verb} {', '.join(d.arm.label for d in against if d.winner == winner)}"
        for winner, verb in verbs.items()
        if any(d.winner == winner for d in against)
    ]
    return "  Against methods alone: " + "; ".join(parts)


def _remedy(arm: SpikeArm) -> str:
    return f"{brief_setting(arm.scheme)}: {arm.label}"


def _remedy_words(study: SpikeStudy, arm: SpikeArm) -> str:
    """A remedy in a sentence."""
    beside = f"{', '.join(map(short_name, study.sites))} protected" if arm.label == PROTECTED else arm.label
    return f"{setting_words(arm.scheme)} with {beside}" if arm.label != NAIVE else setting_words(arm.scheme)


def _effort(arm: SpikeArm) -> int:
    if "outliers" in arm.scheme or "hadamard" in arm.transforms:
        return 3
    if "static" not in arm.scheme:
        return 2
    return 1 if arm.protected or arm.prefix else 0


def _short_stream(name: str) -> str:
    block = next((part for part in name.split(".") if part.isdigit()), "?")
    return f"{block}.{name.rpartition('.')[2]}"


def _said(difference: Difference) -> str:
    error = "" if math.isnan(difference.standard_error) else f" ± {Z * difference.standard_error:.4f}"
    return f"{difference.nats:+.4f}{error} nats ({100 * math.expm1(min(difference.nats, 700)):+.2f} % perplexity)"


def _error(difference: Difference) -> str:
    if math.isnan(difference.standard_error):
        return ""
    low, high = (100 * math.expm1(min(bound, 700)) for bound in difference.interval)
    return f" ({low:+.2f} to {high:+.2f})"
