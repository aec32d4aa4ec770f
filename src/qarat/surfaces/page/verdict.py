"""The verdict: what a run came to, in one sentence with numbers."""

from __future__ import annotations

import math

from qarat.jobs.spike_study.arms import PROTECTED
from qarat.jobs.spike_study.verdicts import outcome_of, verdict_lines
from qarat.stages.laws.forms import FORMS
from qarat.stages.spikes import find_spikes
from qarat.surfaces.page.story import Story
from qarat.surfaces.tables.advice import verdict as of_advice
from qarat.surfaces.tables.laws import why_uncompared
from qarat.surfaces.tables.wording import count, fixed, listed, megabytes, perplexity_change, share
from qarat.values.fingerprints import spellings_of
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan
from qarat.values.records.advice import Advice
from qarat.values.records.law import Law
from qarat.values.records.origin import Difference
from qarat.values.records.prices import Protection
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.records.spike_study import SpikeStudy
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import PLANNING_RULES
from qarat.values.schemes import LinearScheme, Scheme, TensorScheme
from qarat.values.sites import short_name
from qarat.values.units import make_units

_NAMED = 3  # protected sites that the sentence names


def verdict(story: Story) -> str:
    """One sentence; where a run is unfinished, what can be said so far."""
    plan, evaluations = story.one(Plan), {e.label: e for e in story.evaluations}
    if study := story.one(SpikeStudy):
        return _study(study)
    if plan and {"float", "naive", "plan"} <= evaluations.keys():
        return _outcome(plan, evaluations, story)
    if len(story.evaluations) > 1:
        return _comparison(story.evaluations)
    if advice := story.one(Advice):
        return f"{of_advice(advice)}."
    if stats := story.one(ActivationStats):
        return _spikes(stats, low_input(story))
    if law := story.one(Law):
        return _law(law)
    return "There is nothing to judge by yet."


def facts(story: Story) -> list[tuple[str, str, str]]:
    """The figures behind the verdict: what, how much, and what goes with it."""
    figures: list[tuple[str, str, str]] = []
    evaluations, plan, sweep = {e.label: e for e in story.evaluations}, story.one(Plan), story.one(Protection)
    if {"float", "plan"} <= evaluations.keys():
        lost = paired_difference(evaluations["plan"], evaluations["float"])
        low, high = (perplexity_change(end) for end in lost.interval)
        figures.append(("perplexity over float", f"{perplexity_change(lost.nats)} %", f"95 %: {low} to {high}"))
        if sweep:
            met = "met" if lost.nats <= sweep.budget_nats else "not met"
            figures.append((f"budget {sweep.budget}", met, "on text that planning has not seen"))
    if plan:
        bits = f"{megabytes(plan.weight_bits())} MB of weights"
        figures.append(("low share Q_r", f"{fixed(100 * plan.ratio(), 1)} %", "by parameters"))
        figures.append(("bits per weight", fixed(plan.bits_per_weight(), 2), bits))
    return figures


def scheme_words(scheme: Scheme) -> str:
    """A projection's scheme as one says it: ``INT8``, ``INT4 weights``, ``float``."""
    if not isinstance(scheme, LinearScheme) or scheme == LinearScheme():
        return "float"
    weight, inputs = (_format_words(part) for part in (scheme.weight, scheme.input))
    if weight == inputs:
        return weight
    return " and ".join(f"{of} {kept}" for of, kept in ((weight, "weights"), (inputs, "inputs")) if of)


def low_input(story: Story) -> TensorScheme | None:
    """How the low scheme keeps inputs; None where it leaves them in float, or there is no plan yet."""
    plan = story.one(Plan)
    scheme = parse_scheme(plan.low) if plan else LinearScheme()
    return scheme.input if isinstance(scheme, LinearScheme) else None


def _format_words(part: TensorScheme | None) -> str:
    if part is None:
        return ""
    name = part.spell("w").split("/")[0]
    return "a table of its own" if name.startswith("{") else name.upper()


def _study(study: SpikeStudy) -> str:
    """What protection buys at the main setting; without protected sites or spikes, that there are none."""
    outcome = outcome_of(study, study.main)
    if outcome is None or not study.sites or not any(rule.flagged for rule in study.rules):
        return f"{next(iter(verdict_lines(study)), 'There is nothing to judge by yet').strip()}."
    arm = study.find(study.main, PROTECTED)
    size = f" ({share(arm.share, 1, 2)} % of the parameters)" if arm else ""
    low, names = scheme_words(parse_scheme(study.main)), ", ".join(map(short_name, study.sites))
    naive, kept = (f"{perplexity_change(loss.nats)} %" for loss in (outcome.naive, outcome.protected))
    if math.isnan(outcome.restored):
        return (
            f"{low} costs nothing that could be taken back: perplexity {naive} over float; with {names} kept, {kept}."
        )
    return (
        f"Keeping {names} in float{size} takes back {fixed(100 * outcome.restored, 0)} % of what {low} costs: "
        f"perplexity {kept} over float, where {low} everywhere costs {naive}."
    )


def _outcome(plan: Plan, evaluations: dict[str, Evaluation], story: Story) -> str:
    naive = paired_difference(evaluations["naive"], evaluations["float"])
    lost = paired_difference(evaluations["plan"], evaluations["float"])
    low, kept, beside = scheme_words(parse_scheme(plan.low)), story.protected, _beside(plan, story)
    projections = sum(a.site.kind == "projection" for a in plan.assignments)
    # Done to the planned model alone: naive is of the model as it was asked for.
    done = spellings_of(plan.model) if evaluations["naive"].provenance.model != plan.model else ()
    ours, floats = fixed(evaluations["plan"].perplexity, 2), fixed(evaluations["float"].perplexity, 2)
    if not kept:
        overridden = len(plan.exceptions())
        rest = f"the other {projections - overridden} projections" if overridden else f"all {projections} projections"
        opening, more, sweep = "Nothing needs protection", "", story.one(Protection)
        if sweep and lost.nats > sweep.budget_nats:
            opening, more = f"No protection that was tried keeps {sweep.budget}", " A finer low scheme may do."
        undone = f", where {low} everywhere, with nothing done, {_naive_words(naive, lost)}" if done else ""
        return (
            f"{opening}: with {listed([*beside, f'{rest} in {low}'])}, perplexity is {ours} against float's {floats} "
            f"({perplexity_change(lost.nats)} %){undone}.{more}"
        )
    units = [u.label for u in make_units([a.site for a in kept], tied=True)]
    names = ", ".join(units[:_NAMED]) + (" and others" if len(units) > _NAMED else "")
    total = sum(a.site.parameters for a in plan.assignments)
    size = share(sum(a.site.parameters for a in kept), total)
    schemes = {scheme_words(a.scheme) for a in kept}
    kind = schemes.pop() if len(schemes) == 1 else "higher precision"
    with_what = f"With {listed(list(done))}, keeping" if done else "Keeping"
    alike = [] if done else beside  # what naive has as well
    alike_words = f" (as in the plan, with {listed(alike)})" if alike else ""
    return (
        f"{with_what} {len(kept)} of {projections} projections in {kind} ({names}; {size} % of the parameters) holds "
        f"perplexity at {ours} against float's {floats} ({perplexity_change(lost.nats)} %), where {low} everywhere"
        f"{alike_words} {_naive_words(naive, lost, 'the two buy' if done else 'protection buys')}."
    )


def _beside(plan: Plan, story: Story) -> list[str]:
    """What naive and the plan have in common beside the low scheme, so that protection did not buy it."""
    overridden = len(plan.exceptions()) - len(story.protected)
    return [
        *spellings_of(plan.model),
        *([f"a prefix of {count(len(plan.prefix), 'token')} in float"] if plan.prefix else []),
        *([f"{count(overridden, 'projection')} as --set decides"] if overridden else []),
    ]


def _naive_words(naive: Difference, lost: Difference, what: str = "that buys") -> str:
    change = f"{perplexity_change(naive.nats)} %"
    if naive.interval[0] <= 0:
        return f"loses nothing that can be measured ({change})"
    recovered = fixed(100 * (naive.nats - lost.nats) / naive.nats, 0)
    return f"costs {change}: {what} back {recovered} % of the loss"


def _comparison(evaluations: tuple[Evaluation, ...]) -> str:
    first, *others = evaluations
    changes = [
        f"{e.label} {fixed(e.perplexity, 2)} ({perplexity_change(paired_difference(e, first).nats)} %)" for e in others
    ]
    return f"Perplexity is {fixed(first.perplexity, 2)} for {first.label}; {', '.join(changes)}."


def _spikes(stats: ActivationStats, low: TensorScheme | None) -> str:
    flagged = {name for rule in PLANNING_RULES for name in find_spikes(stats, rule, low).flagged}
    worst = max((s for s in stats.streams.values() if s.kind.endswith("_in")), key=lambda s: s.ratio)
    where = f"block {worst.block}'s {worst.kind} has the largest r, {fixed(worst.ratio, 1)}"
    if not flagged:
        return f"No rule sees a spike in what the projections read: {where}."
    return f"{count(len(flagged), 'stream')} that projections read may starve ordinary tokens: {where}."


def _law(law: Law) -> str:
    fits = [fit for fit in law.fits if fit.form == law.shown]
    title = FORMS.load(law.shown).title.partition(":")[0]
    title = title if title[0].isupper() else f"The {title}"
    points = count(sum(len(fit.points) for fit in fits), "point")
    if len(fits) > 1 or not fits[0].quality:
        return f"{title} was fitted to {points} of {law.data}."
    quality = fits[0].quality[0]
    unseen = "".join(f", {fixed(100 * e, 1)} % on sizes that it had not seen" for e in quality.left_out_error)
    best = f" No form can be called the best: {why_uncompared(law)}." if law.uncompared else ""
    return f"{title} is off by {fixed(100 * quality.error, 1)} % on average over {points}{unseen}.{best}"
