"""What a study's arms say together, in sentences: pure functions of the record."""

from __future__ import annotations

import math
import shlex
from itertools import chain

from qarat.jobs.spike_study.arms import ATTENTION, MLP, NAIVE, PROTECTED
from qarat.jobs.spike_study.comparisons import (
    FP8_MARGIN,
    Duel,
    Inside,
    SettingOutcome,
    Winner,
    ablated,
    duels,
    in_front,
    inside,
    outcome_of,
    steadied,
)
from qarat.values.records.origin import Difference
from qarat.values.records.spike_study import SpikeArm, SpikeStudy, setting_words
from qarat.values.sites import short_name

_SLACK = 0.05  # of the twin's naive loss; a gain below it is not worth a dearer remedy

_INSIDE: dict[Inside, str] = {
    "yes": "within {}",
    "estimate only": "perhaps within {}: the estimate is, its interval is not",
    "no": "not within {}",
}
_WINNERS: dict[Winner, str] = {
    "protection": "protection beats",
    "equal within error": "equal within error are",
    "method": "protection is beaten by",
    "no error known": "without a known error are",
}
"""With the verb that leads to the methods of such duels."""


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
    for setting in [s for s in study.settings if s in (study.main, study.twin)] or study.settings:
        outcome = outcome_of(study, setting)
        lines += [] if outcome is None else _protection(study, outcome)
        lines += [_duel_line(duels(study, setting)), _front_line(study, setting), _ablation_line(study, setting)]
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
    methods = {lead: [d.arm.label for d in against if d.winner == winner] for winner, lead in _WINNERS.items()}
    parts = [f"{lead} {', '.join(labels)}" for lead, labels in methods.items() if labels]
    return f"  Against methods alone: {'; '.join(parts)}" if parts else ""


def _front_line(study: SpikeStudy, setting: str) -> str:
    front = in_front(study, setting)
    if front is None:
        return ""
    kept = "" if front.protected is None else f", the protected sites {_loss_words(front.protected)}"
    return (
        f"  {front.tokens}: naive loses {_loss_words(front.naive)}; the first tokens in float "
        f"{_loss_words(front.prefix)}{kept}"
    )


def _ablation_line(study: SpikeStudy, setting: str) -> str:
    """Which part of the blocks is the most sensitive, and which kind of projection."""
    parts = ablated(study, setting)
    of_block = sorted((p for p in parts if p.part in (ATTENTION, MLP)), key=lambda p: -p.loss.nats)
    kinds = [p for p in parts if p.part not in (ATTENTION, MLP)]
    if len(of_block) < 2 or not kinds:
        return ""
    worst = max(kinds, key=lambda p: p.loss.nats)
    losses = "; ".join(f"{p.part} {_loss_words(p.loss)}" for p in (*of_block, worst))
    apart = study.over(of_block[0].arm, of_block[1].arm)
    low = apart.interval[0]
    known = (
        "no error known"
        if math.isnan(low)
        else "beyond the 95 % interval"
        if low > 0
        else "not beyond the 95 % interval"
    )
    return (
        f"Alone low, in {setting_words(setting)}: {losses}, the most of any kind; {of_block[0].part} is dearer, {known}"
    )


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
