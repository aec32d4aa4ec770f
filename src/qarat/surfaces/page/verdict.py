"""The verdict: what a page's records came to, in a number and a sentence, with the facts beside it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from qarat.jobs.folder import STATS
from qarat.jobs.search.budgets import plan_file
from qarat.jobs.spike_study.arms import PROTECTED
from qarat.jobs.spike_study.comparisons import outcome_of
from qarat.jobs.spike_study.verdicts import verdict_lines
from qarat.stages.laws.forms import FORMS
from qarat.stages.spikes import find_spikes
from qarat.surfaces.page.parts import Command
from qarat.surfaces.page.remedies import done_words
from qarat.surfaces.page.story import Story, portable
from qarat.surfaces.tables.advice import verb_of, words_of
from qarat.surfaces.tables.advice import verdict as of_advice
from qarat.surfaces.tables.calibration_study import headline as of_calibration
from qarat.surfaces.tables.laws import why_uncompared
from qarat.surfaces.tables.wording import count, fixed, interval, listed, megabytes, perplexity_change, share
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan
from qarat.values.records.advice import Advice
from qarat.values.records.calibration_study import CalibrationStudy
from qarat.values.records.law import Law
from qarat.values.records.origin import Difference, normal_interval
from qarat.values.records.prices import Protection
from qarat.values.records.scores import Divergence, Evaluation, paired_difference
from qarat.values.records.search import Reached, SearchResult
from qarat.values.records.search import interval_words as reach_words
from qarat.values.records.speed import EngineSpeed
from qarat.values.records.spike_study import SpikeStudy
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import PLANNING_RULES
from qarat.values.schemes import LinearScheme, Scheme, TensorScheme, is_static
from qarat.values.sites import short_name
from qarat.values.units import make_units

_NAMED = 3  # protected sites that the sentence names


class Verdict(NamedTuple):
    """What a person takes home in ten seconds, and a sentence that says of what."""

    headline: str
    note: str = ""


def verdict(story: Story) -> Verdict:
    """What it came to; where a run is unfinished, what can be said so far."""
    plan, evaluations = story.one(Plan), {e.label: e for e in story.evaluations}
    if study := story.one(SpikeStudy):
        return _study(study)
    if plan and {"float", "naive", "plan"} <= evaluations.keys():
        return _outcome(plan, evaluations, story)
    if len(story.evaluations) > 1:
        return _comparison(story.evaluations)
    if calibrated := story.one(CalibrationStudy):
        return Verdict(*of_calibration(calibrated))
    if advice := story.one(Advice):
        return _advised(advice)
    if search := story.one(SearchResult):
        return _search(search)
    if diverged := story.all(Divergence):
        kept, likeliest = _kept(diverged)[1:], "of tokens, float's likeliest next one stays the likeliest"
        return Verdict(f"On {kept[0]} {likeliest} under {diverged[-1].label}", f"{kept[1]}." if kept[1] else "")
    if stats := story.one(ActivationStats):
        return _spikes(stats, low_input(story))
    if speed := story.one(EngineSpeed):
        return _timed(speed)
    if law := story.one(Law):
        return _law(law)
    return Verdict("There is nothing to judge by yet")


def subject(story: Story) -> str:
    """What the page is about: the model as it was called, or else what it is known by."""
    law, study = story.one(Law), story.one(SpikeStudy)
    if name := story.about.model or (study and portable(study.name)):
        return name
    if speed := story.one(EngineSpeed):
        return speed.folders[0].folder
    return f"model {model[:12]}" if (model := next(story.models, "")) else law.data if law else "a run"


def about(story: Story) -> list[str]:
    """When it was made, and of which weights."""
    model, job = next(story.models, ""), story.about
    size = [f"{megabytes(8 * job.float_bytes)} MB in float"] if job.float_bytes and not job.bytes else []
    known = subject(story).startswith("model ")
    return [*filter(None, [job.date]), *size, *([f"model {model[:12]}"] if model and not known else [])]


def next_lines(story: Story) -> Command | None:
    """What to type next, where the page is of a job's folder."""
    if story.about.serving:
        return Command("To serve it", "\n".join(story.about.serving))
    if story.about.bytes:
        return Command(
            "vLLM does not run this plan as it is; why, says", shlex.join(["qarat", "export", story.about.folder])
        )
    if (advice := story.one(Advice)) and story.about.model:
        chosen = [s for s in advice.schemes if s.name in advice.measured] or advice.meeting[:1]
        lines = [shlex.join(["qarat", verb_of(s), story.about.model, *words_of(s)]) for s in chosen]
        return Command("To go on", "\n".join(lines)) if lines else None
    chosen = [r for search in story.all(SearchResult) for r in search.reached if r.trial >= 0]
    if chosen and story.about.model:
        folder, search = story.about.folder, story.all(SearchResult)[0]
        static = any(is_static(parse_scheme(scheme)) for scheme in (*search.menu, *search.caches))
        stats = ["--stats", f"{folder}/{STATS}"] if static else []
        words = [story.about.model, "--plan", f"{folder}/{plan_file(chosen[0].budget)}", *stats]
        return Command("To go on", shlex.join(["qarat", "quantize", *words]))
    return None


def facts(story: Story) -> list[tuple[str, str, str]]:
    """The figures behind the verdict: what, how much, and what goes with it."""
    figures: list[tuple[str, str, str]] = []
    evaluations, plan, sweep = {e.label: e for e in story.evaluations}, story.one(Plan), story.one(Protection)
    if {"float", "plan"} <= evaluations.keys():
        lost = paired_difference(evaluations["plan"], evaluations["float"])
        figures.append(("perplexity over float", f"{perplexity_change(lost.nats)} %", interval_words(lost)))
        if sweep:
            met = "met" if lost.nats <= sweep.budget_nats else "not met"
            figures.append((f"budget {sweep.budget}", met, "on text that planning has not seen"))
    if diverged := story.all(Divergence):
        figures.append(_kept(diverged))
    if story.about.bytes:
        before = story.about.float_bytes
        beside = f"instead of {megabytes(8 * before)} MB in float" if before else "with what is not quantized"
        figures.append(("weights on disk", f"{megabytes(8 * story.about.bytes)} MB", beside))
    if search := story.one(SearchResult):
        figures += [_reached(search, reached) for reached in search.reached if reached.trial >= 0]
    if plan:
        low = f"{fixed(100 * plan.ratio(), 1)} % of the parameters low (Q_r)"
        figures.append(("bits per weight", fixed(plan.bits_per_weight(), 2), low))
    return figures


def _kept(diverged: Sequence[Divergence]) -> tuple[str, str, str]:
    """How often float's likeliest token stays the likeliest under the last of several models."""
    *others, last = diverged
    ends = [100 * bound for bound in normal_interval(*last.agreement)]
    note = [] if math.isnan(ends[0]) else [f"95 %: {interval(ends, 1, sign=False)} %"]
    note += [f"{other.label}: {fixed(100 * other.agreement[0], 1)} %" for other in others]
    return "float's likeliest token kept", f"{fixed(100 * last.agreement[0], 1)} %", "; ".join(note)


def _reached(search: SearchResult, reached: Reached) -> tuple[str, str, str]:
    """What one budget of a search reaches."""
    trial = search.trials[reached.trial]
    if search.axis == "ratio":
        share_low, ends = f"{fixed(trial.ratio, 3)} low (Q_r)", reach_words(reached.low, reached.high)
        return reached.budget, share_low, f"{f'95 %: {ends}; ' if ends else ''}{fixed(trial.bits, 2)} bits per weight"
    if search.axis == "megabytes":
        return reached.budget, f"{fixed(trial.megabytes, 3)} MB", f"weights and caches of {search.context:,} tokens"
    return reached.budget, f"{fixed(trial.bits, 2)} bits", "per weight, scales included"


def interval_words(lost: Difference) -> str:
    """A difference's interval in per cent of perplexity, as prose says it; that there is none, of one source."""
    if not math.isfinite(lost.standard_error):
        return "one source of text gives no interval"
    low, high = map(perplexity_change, lost.interval)
    return f"95 %: {low} to {high} %"


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


def _study(study: SpikeStudy) -> Verdict:
    """What protection buys at the main setting; without protected sites or spikes, that there are none."""
    outcome = outcome_of(study, study.main)
    if outcome is None or not study.sites or not any(rule.flagged for rule in study.rules):
        first, _, rest = next(iter(verdict_lines(study)), "There is nothing to judge by yet").strip().partition(": ")
        return Verdict(first, f"{rest[:1].upper()}{rest[1:]}." if rest else "")
    arm = study.find(study.main, PROTECTED)
    size = f" ({share(arm.share, 1, 2)} % of the parameters)" if arm else ""
    low, names = scheme_words(parse_scheme(study.main)), listed([short_name(site) for site in study.sites])
    restored = f", which takes back {fixed(100 * outcome.restored, 0)} % of the loss"
    return Verdict(
        _instead(outcome.protected, outcome.naive),
        f"{low} with {names} in float{size}{'' if math.isnan(outcome.restored) else restored}.",
    )


def _instead(ours: Difference, naive: Difference) -> str:
    """The number, beside what it would be with nothing done."""
    return f"{perplexity_change(ours.nats)} % perplexity instead of {perplexity_change(naive.nats)} %"


def _outcome(plan: Plan, evaluations: dict[str, Evaluation], story: Story) -> Verdict:
    naive = paired_difference(evaluations["naive"], evaluations["float"])
    lost = paired_difference(evaluations["plan"], evaluations["float"])
    low, sweep, model = scheme_words(parse_scheme(plan.low)), story.one(Protection), plan.model
    # What is done to the planned model alone bought something; what naive has too did not.
    ours = evaluations["naive"].provenance.model != model
    done, alike = (done_words(model), _beside(plan, story)) if ours else ([], done_words(model) + _beside(plan, story))
    note = f"{low} {_extent(plan, story)}{f', after {listed(done)}' if done else ''}"
    note += f"; the other number is with {listed(alike)} too." if alike else "."
    if sweep and not story.protected:
        within = lost.nats <= sweep.budget_nats
        note += " Nothing needs protection." if within else f" No protection that was tried keeps {sweep.budget}."
    if naive.interval[0] <= 0:
        note += f" {low} alone loses nothing measurable."
    return Verdict(_instead(lost, naive), note)


def _extent(plan: Plan, story: Story) -> str:
    """Of how many projections the low scheme is, and which are protected."""
    kept, projections = story.protected, sum(a.site.kind == "projection" for a in plan.assignments)
    if not kept:
        others = len(plan.exceptions())
        return (
            f"in {projections - others} of {projections} projections" if others else f"in all {projections} projections"
        )
    names = [u.label for u in make_units([a.site for a in kept], tied=True)]
    named = ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
    size = share(sum(a.site.parameters for a in kept), sum(a.site.parameters for a in plan.assignments))
    schemes = {scheme_words(a.scheme) for a in kept}
    kind = schemes.pop() if len(schemes) == 1 else "higher precision"
    return f"with {len(kept)} of {projections} projections in {kind} ({named}; {size} % of the parameters)"


def _beside(plan: Plan, story: Story) -> list[str]:
    """What naive and the plan have in common beside the low scheme, so that protection did not buy it."""
    overridden = len(plan.exceptions()) - len(story.protected)
    return [
        *([f"a prefix of {count(len(plan.prefix), 'token')} in float"] if plan.prefix else []),
        *([f"{count(overridden, 'projection')} as --set decides"] if overridden else []),
    ]


def _comparison(evaluations: tuple[Evaluation, ...]) -> Verdict:
    first, *others = evaluations
    changes = [f"{perplexity_change(paired_difference(e, first).nats)} % for {e.label}" for e in others]
    values = [f"{fixed(e.perplexity, 2)} for {e.label}" for e in evaluations]
    return Verdict(f"Perplexity over {first.label}: {listed(changes)}", f"Perplexity is {listed(values)}.")


def _advised(advice: Advice) -> Verdict:
    """The smallest that was measured within the budget, in a number; else what there is to say."""
    within = [s for s in advice.meeting if s.name in advice.measured]
    for scheme in within:
        if (lost := advice.measured[scheme.name]).nats <= advice.budget_nats:
            headline = f"{scheme.name}: {perplexity_change(lost.nats)} % perplexity at {megabytes(8 * scheme.size)} MB"
            return Verdict(headline, f"The smallest that was measured within {advice.budget} ({interval_words(lost)}).")
    first, _, rest = of_advice(advice).partition("; " if within else ". ")
    return Verdict(first, f"{rest[:1].upper()}{rest[1:]}." if rest else "")


def _search(search: SearchResult) -> Verdict:
    """The most that the first budget reaches."""
    for reached in search.reached:
        if reached.trial >= 0:
            trial, lost = search.trials[reached.trial], search.on_report(reached)
            low = scheme_words(parse_scheme(search.menu[0]))
            share_low = f"{fixed(100 * trial.ratio, 1)} % of the weights in {low} within {reached.budget}"
            bits = f"{fixed(trial.bits, 2)} bits per weight within {reached.budget}"
            size = f"{fixed(trial.megabytes, 3)} MB, caches of {search.context:,} tokens in it, within {reached.budget}"
            unseen = f"On text that the search has not seen, {perplexity_change(lost.nats)} % perplexity "
            note = f"{unseen}({interval_words(lost)})." if reached.report else ""
            return Verdict({"ratio": share_low, "bits": bits, "megabytes": size}[search.axis], note)
    return Verdict("No plan keeps a budget", f"{count(len(search.trials), 'plan')} measured.")


def _spikes(stats: ActivationStats, low: TensorScheme | None) -> Verdict:
    flagged = {name for rule in PLANNING_RULES for name in find_spikes(stats, rule, low).flagged}
    worst = max((s for s in stats.streams.values() if s.kind.endswith("_in")), key=lambda s: s.ratio)
    where = f"Block {worst.block}'s {worst.kind} has the largest r, {fixed(worst.ratio, 1)}."
    if not flagged:
        return Verdict("No rule sees a spike in what the projections read", where)
    return Verdict(f"{count(len(flagged), 'stream')} that projections read may starve ordinary tokens", where)


def _timed(speed: EngineSpeed) -> Verdict:
    """The last folder's decoding beside the first's, in the largest batch."""
    first, last = speed.folders[0], speed.folders[-1]
    *_, decode = speed.measures(last)
    note = f"{decode.name}: {fixed(decode.values.median, 1)}"
    if last is first:
        return Verdict(f"{first.folder} in {speed.engine}: {note}")
    low, high = (fixed(ratio, 2) for ratio in (decode.ratios.least, decode.ratios.most))
    headline = f"{last.folder} decodes {fixed(decode.ratios.median, 2)} times as fast as {first.folder}"
    return Verdict(headline, f"In {speed.engine} {speed.version} ({low} to {high}); {note}.")


def _law(law: Law) -> Verdict:
    fits = [fit for fit in law.fits if fit.form == law.shown]
    title = FORMS.load(law.shown).title.partition(":")[0]
    title = title if title[0].isupper() else f"The {title}"
    points = f"{count(sum(len(fit.points) for fit in fits), 'point')} of {law.data}"
    best = f"No form can be called the best: {why_uncompared(law)}." if law.uncompared else ""
    if len(fits) > 1 or not fits[0].quality:
        return Verdict(f"{title}, fitted to {points}", best)
    quality = fits[0].quality[0]
    unseen = "".join(f", {fixed(100 * e, 1)} % on sizes that it had not seen" for e in quality.left_out_error)
    note = f"On average, over {points}{unseen}. {best}".strip()
    return Verdict(f"{title} is off by {fixed(100 * quality.error, 1)} %", note)
