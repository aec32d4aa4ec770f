"""What a study's arms say together: pure functions of the record."""

from __future__ import annotations

import math
import shlex
from itertools import chain
from typing import Literal, NamedTuple

from qarat.jobs.spike_study.arms import ANY_KIND, EVERY_DOWN, NAIVE, PROTECTED, PROTECTED_IN, SAME_KIND
from qarat.values.records.origin import Difference
from qarat.values.records.spike_study import SpikeArm, SpikeStudy, brief_setting, setting_words
from qarat.values.sites import short_name

FP8_MARGIN = 0.002  # of perplexity: within so much, FP8 is taken to be as good as float
_SLACK = 0.05  # of the twin's naive loss; a gain below it is not worth a dearer remedy

Inside = Literal["yes", "estimate only", "no"]
_INSIDE = {
    "yes": "within {}",
    "estimate only": "perhaps within {}: the estimate is, its interval is not",
    "no": "not within {}",
}
_WINNERS = {
    "protection": "protection beats",
    "equal within error": "equal within error are",
    "method": "protection is beaten by",
    "no error known": "without a known error are",
}
"""Of a `Duel`, with the verb that leads to its methods."""


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
    def winner(self) -> str:
        """A key of `_WINNERS`; ``no error known`` where one source gives none."""
        if math.isnan(self.over.standard_error):
            return "no error known"
        low, high = self.over.interval
        return "equal within error" if low <= 0 <= high else "protection" if low > 0 else "method"


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


def recommend(study: SpikeStudy) -> str:
    """Which remedy for 6 bits to take, in words."""
    tried = steadied(study)
    naive = study.find(study.twin, NAIVE)
    if not tried or naive is None:
        return ""
    # What is chosen among so many on the tokens it is quoted on has to hold with its whole interval.
    within = [s for s in tried if inside(s.loss, study.budget_nats) == "yes"]
    naive_loss = study.over_float(naive)
    allowed = tried[0].loss.nats + _SLACK * max(0.0, naive_loss.nats)
    candidates = within or [s for s in tried if s.loss.nats <= allowed]
    best = min(candidates, key=lambda s: (s.effort, s.arm.bits, s.loss.nats))
    remedy, loss, how = _remedy_words(study, best.arm), _loss_words(best.loss), _how(study, best.arm)
    if within:
        return f"6 bits: take {remedy}; it keeps {study.budget} at {loss}{how}"
    return (
        f"6 bits: nothing that was tried keeps {study.budget} with its whole interval; {remedy} comes to {loss}, where "
        f"naive loses {_loss_words(naive_loss)}{how}. Take 8 bits where that is too much"
    )


def _how(study: SpikeStudy, arm: SpikeArm) -> str:
    """What makes the model of a recommended arm; a run without sites to name would choose some by itself."""
    if arm.protected:
        return f": {command(study, arm)} (with the study's text options)"
    beside = "".join(f", {' '.join(option)}" for option in _changes(arm))
    return f": low scheme '{arm.scheme}'{beside}, nothing protected"


def command(study: SpikeStudy, arm: SpikeArm) -> str:
    """The command that makes the model of an arm whose protected sites are in float."""
    sites = ["--sites", *map(short_name, arm.protected)] if arm.protected else []
    return shlex.join(["qarat", "run", study.name, "--low", arm.scheme, *sites, *chain(*_changes(arm))])


def _changes(arm: SpikeArm) -> list[list[str]]:
    """Options for what is done beside the scheme, each with its values."""
    options = {"--transform": arm.transforms, "--prefix": [str(arm.prefix)] if arm.prefix else []}
    return [[option, *values] for option, values in options.items() if values]


def verdict_lines(study: SpikeStudy) -> tuple[str, ...]:
    """The verdict: the main setting in a sentence, its twin, FP8, the methods, and 6 bits."""
    lines: list[str] = []
    if not study.sites:
        lines.append(_nothing(study))
    elif not any(rule.flagged for rule in study.rules):
        lines.append(_no_spikes(study))
    for setting in (study.main, study.twin):
        outcome = outcome_of(study, setting)
        lines += [] if outcome is None else _protection(study, outcome)
        lines.append(_duel_line(duels(study, setting)))
    return tuple(filter(None, (*lines, recommend(study))))


def _nothing(study: SpikeStudy) -> str:
    naive = study.find(study.main, NAIVE)
    lost = None if naive is None else study.over_float(naive)
    within = lost is None or lost.nats <= study.budget_nats
    begin = "There is nothing to protect" if within else "No protection that was tried helps"
    more = "" if lost is None else f", and naive loses {_loss_words(lost)} on the report tokens"
    return f"{begin}: {_spikes(study)}{more}. The planner: {study.chosen}"


def _no_spikes(study: SpikeStudy) -> str:
    naive, first = study.find(study.main, NAIVE), study.find(study.main, "by damage, k=1")
    lost = None if naive is None else study.over_float(naive)
    more = "" if lost is None else f". Naive loses {_loss_words(lost)}"
    if lost is not None and first is not None and lost.nats > 0:  # of nothing lost there is no share
        share = (lost.nats - study.over_float(first).nats) / lost.nats
        more += f", spread over many sites: the dearest alone gives back {100 * share:.0f} %"
    return f"There is no spike to protect: {_spikes(study)}{more}"


def _spikes(study: SpikeStudy) -> str:
    """What the spike rules flag, in words."""
    flagged = {".".join(name.split(".")[-2:]) for rule in study.rules for name in rule.flagged}
    if not flagged:
        return f"none of {len(study.rules)} spike rules flags a stream"
    return f"the spike rules flag {', '.join(sorted(flagged))}"


def _protection(study: SpikeStudy, outcome: SettingOutcome) -> list[str]:
    names = ", ".join(map(short_name, study.sites))
    restored = "" if math.isnan(outcome.restored) else f", {100 * outcome.restored:.0f} % of the loss restored"
    budget = _INSIDE[outcome.within].format(study.budget)
    setting, kept = setting_words(outcome.setting), _loss_words(outcome.protected)
    lines = [f"{setting}: naive loses {_loss_words(outcome.naive)}; {names} in float {kept}{restored}, {budget}"]
    if outcome.closest is not None:
        closest = study.over_float(outcome.closest)
        worse = (
            "no error is known, as the report text is one source"
            if math.isnan(closest.standard_error)
            else f"{outcome.beaten} of {outcome.controls} are worse beyond the 95 % interval"
        )
        name = outcome.closest.label.partition(": ")[2]
        lines.append(f"  Random controls: {worse}; the closest, {name}, loses {_loss_words(closest)}")
    if outcome.fp8 is not None:
        change = f"{100 * math.expm1(outcome.fp8.nats):+.2f} % perplexity"
        error = _error(outcome.fp8, ", ")
        margin = _INSIDE[outcome.fp8_within].format(f"±{100 * FP8_MARGIN:g} %")
        lines.append(f"  E4M3 instead of float: {change}{error}, {margin}")
    return lines


def _duel_line(against: tuple[Duel, ...]) -> str:
    methods = {winner: [d.arm.label for d in against if d.winner == winner] for winner in _WINNERS}
    parts = [f"{_WINNERS[winner]} {', '.join(labels)}" for winner, labels in methods.items() if labels]
    return f"  Against methods alone: {'; '.join(parts)}" if parts else ""


def _remedy_words(study: SpikeStudy, arm: SpikeArm) -> str:
    """A remedy in a sentence."""
    beside = f"{', '.join(map(short_name, study.sites))} protected" if arm.label == PROTECTED else arm.label
    return f"{setting_words(arm.scheme)} with {beside}" if arm.label != NAIVE else setting_words(arm.scheme)


def _loss_words(difference: Difference) -> str:
    change = 100 * math.expm1(min(difference.nats, 700))
    return f"{difference.nats:+.4f} nats ({change:+,.2f} % perplexity{_error(difference, '; ')})"


def _error(difference: Difference, before: str) -> str:
    """A difference's interval in per cent of perplexity; nothing where none is known."""
    if math.isnan(difference.standard_error):
        return ""
    low, high = (100 * math.expm1(min(bound, 700)) for bound in difference.interval)
    return f"{before}95 %: {low:+,.2f} to {high:+,.2f}"
