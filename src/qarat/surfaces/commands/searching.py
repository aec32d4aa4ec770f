"""Verbs that search or study, once or many times: search, study ratio, sweep, study spikes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from qarat.ground.errors import ArgumentError, NotPassedError
from qarat.jobs import family_sweep, ratio_study
from qarat.jobs.bench import Bench, Member
from qarat.jobs.checks import check_search_request, check_searches
from qarat.jobs.estimates import CHOOSING_FORWARDS, Work, estimate, price_forwards
from qarat.jobs.family_sweep import BUDGET_TABLE, LOSS_TABLE, FamilyJob
from qarat.jobs.folder import STATS, Run
from qarat.jobs.ratio_study import RatioJob
from qarat.jobs.runners import open_runner
from qarat.jobs.search.budgets import plan_file
from qarat.jobs.search.job import KIND, TRIALS, SearchJob
from qarat.jobs.search.nested import SEARCHES
from qarat.jobs.spike_study import job as spike_study
from qarat.jobs.spike_study.job import SpikeJob
from qarat.jobs.spike_study.published import PUBLISHED
from qarat.jobs.spike_study.worlds import SpikeTokens
from qarat.jobs.transforming import kept_files, tokens_to_prepare
from qarat.model.model import Model
from qarat.model.token_sets import Cutter, check_disjoint, read_parts
from qarat.model.tokens import Bos, TokenSet
from qarat.surfaces.commands import Lines, Screen, common
from qarat.surfaces.commands.common import quoted
from qarat.surfaces.options.groups import OnText, Searching
from qarat.surfaces.options.searching import SearchOptions, StudyRatioOptions, StudySpikesOptions, SweepOptions
from qarat.surfaces.page import write_report
from qarat.values.budgets import parse_size
from qarat.values.fingerprints import spellings_of
from qarat.values.records.search import SearchResult
from qarat.values.records.spike_study import Left
from qarat.values.requests.spike_study import SpikeRequest


@contextmanager
def _bench(options: Searching | SweepOptions, screen: Screen) -> Iterator[Bench]:
    """Where plans of a search, a study or a sweep are measured, and how.

    Raises:
        UserError: A malformed size; or as `open_runner`.
    """
    with open_runner(options.runners.workers, options.runners.ray) as runner:
        keep = None if options.keep is None else parse_size("keep", options.keep)
        yield Bench(runner, options.general.seed, screen.progress, options.general.revision, keep)


def search(options: SearchOptions, screen: Screen) -> Lines:
    """Find the plans that budgets allow, in a folder that survives a kill."""
    check_search_request(options.search)
    folder = Run(options.folder, KIND, overwrite=options.overwrite)
    member = _open_member(options.model, options, screen)
    with _bench(options, screen) as bench:
        job = SearchJob(member, options.search, bench)
        if job.rewrite_note:
            screen.note(job.rewrite_note)
        if options.general.dry_run:
            return _estimate(screen, job, member.tokens[1].windows.numel())
        with folder.work(TRIALS, **common.facts_of(options.model, member.model, screen)):
            result = job.execute(folder)
    screen.show(result)
    if options.page:
        write_report([options.folder], options.folder, progress=screen.progress)
    return _ending(options, options.folder, result, job)


def _estimate(screen: Screen, job: SearchJob, tokens: int) -> Lines:
    request, units = job.request, len(job.space.units)
    drawn = request.trials * len(job.points)
    bisected = dict.fromkeys(("predicted", "mixquant"), CHOOSING_FORWARDS)
    plans = {**bisected, "greedy": units * (units + 1) // 2}.get(request.strategy, drawn)
    rewriting = tokens_to_prepare(job.planning, job.calibration.windows.numel(), tokens)
    work: dict[str, float | Work] = {
        **({"transform": float(rewriting)} if rewriting else {}),
        "search": float(plans * tokens),
    }
    if job.rounds:  # a forward of the calibration tokens, and about as much for their moments and the rounding
        work["round"] = 2.0 * job.calibration.windows.numel()
    if job.strategy.METRIC:
        priced = common.pricing_work(request.metric, job.model, job.price_tokens, job.priced_schemes)
        work["damage"] = priced
    # Of the model as given: a rewritten one has no weights yet that could be read.
    return common.show_estimate(screen, job.member.model, work, states=tokens * (job.model.blocks + 1))


def _ending(options: SearchOptions, out: Path, result: SearchResult, job: SearchJob) -> Lines:
    stats = ["--stats", out / STATS] if job.static else []
    if transforms := spellings_of(job.model.fingerprint):
        made_from = [out / name for name in kept_files(transforms) if name]
        stats += ["--transform", *transforms, *(["--transform-stats", *made_from] if made_from else [])]
    plans = [out / plan_file(reached.budget) for reached in result.reached if reached.trial >= 0]
    quantizing = [f"  {common.command_line('quantize', options, '--plan', plan, *stats)}" for plan in plans[:1]]
    return (
        f"written: {quoted(out)} (every trial in search.json, a plan for each budget)",
        *([f"the page to look at: {quoted(out / 'report.html')}"] if options.page else []),
        "try next:",
        *quantizing,
        f"  qarat show {quoted(out / 'search.json')}",
    )


def _open_member(name: str, options: OnText, screen: Screen) -> Member:
    """A model and its token sets."""
    model = common.open_float(name, options)
    return Member(name, model, common.load_tokens(options, model, screen))


def study_ratio(options: StudyRatioOptions, screen: Screen) -> Lines:
    """Do the second founding paper's experiment on a model, in a folder that survives a kill."""
    request = options.study
    check_searches(request)
    folder = Run(options.folder, ratio_study.KIND, overwrite=options.overwrite)
    member = _open_member(options.model, options, screen)
    with _bench(options, screen) as bench:
        job = RatioJob(member, request, bench)
        if options.general.dry_run:
            windows = member.tokens[1].windows.numel()
            arms = len(request.blocks) * len(request.granularities())
            predicted = arms * (price_forwards(1) + CHOOSING_FORWARDS)
            work = {"random": float(request.plans() * windows), "predicted": float(predicted * windows)}
            return common.show_estimate(screen, member.model, work, states=windows * (member.model.blocks + 1))
        with folder.work(SEARCHES, command=screen.command):
            study = job.execute(folder)
    screen.show(study)
    return (
        f"written: {quoted(options.folder)} (every search in {SEARCHES}/, what came of them in {ratio_study.RESULT})",
    )


def sweep(options: SweepOptions, screen: Screen) -> Lines:
    """Search a family of models, and write the table that laws are fitted to."""
    request = options.sweep
    check_searches(request)
    folder = Run(options.out, family_sweep.KIND, overwrite=options.overwrite)

    def open_member(name: str) -> Member:
        return _open_member(name, options, screen)

    with _bench(options, screen) as bench:
        job = FamilyJob(options.models, open_member, request, bench)
        if options.general.dry_run:
            return _estimate_sweep(screen, options.models, open_member, len(request.searches()))
        with folder.work(SEARCHES, command=screen.command):
            swept = job.execute(folder)
    screen.show(swept)
    failed = [f"{p.model}, {p.low}: {p.failure}" for p in swept.points if p.failure]
    if failed:
        raise NotPassedError(
            f"{len(failed)} of {len(swept.points)} points failed; what was measured is in {quoted(folder.folder)}, and "
            "the same command tries these again:\n  " + "\n  ".join(failed)
        )
    formats = list(dict.fromkeys(point.format for point in swept.points))
    one = ["--where", f"format={formats[0]}"] if len(formats) > 1 else []  # a law is about one format
    reached = f", what budgets reach in {BUDGET_TABLE}" if (options.out / BUDGET_TABLE).exists() else ""
    return (
        f"written: {quoted(options.out)} (plans in {LOSS_TABLE}{reached})",
        f"try next: {shlex.join(['qarat', 'law', 'fit', str(options.out / LOSS_TABLE), *one])}",
    )


def _estimate_sweep(
    screen: Screen, models: Sequence[str], open_member: Callable[[str], Member], searches: int
) -> Lines:
    for name in models:
        member = open_member(name)
        model, tokens = member.model, member.tokens
        common.check_weights(model)
        windows = tokens[1].windows.numel()
        work = {f"{searches} searches": float(searches * (price_forwards(1) + CHOOSING_FORWARDS) * windows)}
        screen.show(estimate(model, work, states=windows * (model.blocks + 1), disk=0), title=name)
    return ()


_BOS_OF: dict[str, Bos] = {"bos": "each", "once": "once", "nobos": "never"}
"""How the end of a convention spells its BOS rule."""


def study_spikes(options: StudySpikesOptions, screen: Screen) -> Lines:
    """Measure every arm, in a folder that survives a kill."""
    if options.published:
        screen.show(PUBLISHED)
        return ()
    request = _request(options)
    out = options.folder
    folder = Run(out, spike_study.KIND, overwrite=options.overwrite)
    model = common.open_float(options.model, options)
    tokens = _tokens(options, model, screen)
    job = SpikeJob(model, tokens, request, name=options.model, seed=options.general.seed, progress=screen.progress)
    if options.general.dry_run:
        work, windows = job.work(), tokens.report.windows.numel()
        forwards = sum(work.values()) / windows
        screen.note(f"as much as {forwards:.0f} forwards of the {len(tokens.report)} report windows")
        return common.show_estimate(screen, job.model, work, held=job.memory())
    with folder.work(**common.facts_of(options.model, model, screen)):
        study = job.execute(folder)
    screen.show(study)
    page = write_report([out], out, progress=screen.progress)
    return (
        f"written: {quoted(out)} (every arm with the loss of every window in {spike_study.RESULT})",
        f"the page to look at: {quoted(page)}",
        "try next:",
        f"  qarat show {quoted(out / spike_study.RESULT)}",
        f"  {common.command_line('run', options)}",
    )


def _request(options: StudySpikesOptions) -> SpikeRequest:
    if options.quick and options.full:
        raise ArgumentError("`quick` and `full`: give one of them")
    extent = "quick" if options.quick else "full" if options.full else "usual"
    request = msgspec.structs.replace(options.study, extent=extent)
    request.check()
    return request


def _tokens(options: StudySpikesOptions, model: Model, screen: Screen) -> SpikeTokens:
    """The three sets, the same under the other BOS rules, and another calibration set, as far as they can be had."""
    calibration, selection, report = common.load_tokens(options, model, screen)
    left: list[Left] = []
    bos: dict[str, tuple[TokenSet, TokenSet]] = {}
    mine = _BOS_OF[report.convention.partition(" ")[0].rpartition("-")[2]]
    if model.tokenizer.bos_token_id is None:
        left.append(Left("windows with BOS", "the tokenizer has none"))
    else:
        for rule in _BOS_OF.values():
            if rule != mine:
                sets = common.token_sets_of(options, model, screen, msgspec.structs.replace(options.text, bos=rule))
                bos[rule] = sets[0], sets[2]
    elsewhere = _other_calibration(options, model, screen, mine, calibration, report)
    if elsewhere is None:
        left.append(
            Left(
                "calibration on another kind of text", "none was given; prose for a model of code: --other-calibration"
            )
        )
    return SpikeTokens(calibration, selection, report, bos, elsewhere, tuple(left))


def _other_calibration(
    options: StudySpikesOptions, model: Model, screen: Screen, bos: Bos, calibration: TokenSet, report: TokenSet
) -> TokenSet | None:
    if options.other_calibration is None:
        return None
    draw = common.drawing_of(options, screen)
    cutter = Cutter(model, calibration.length, bos, options.general.seed, draw, screen.progress)
    other = cutter.cut("other calibration", read_parts(model, options.other_calibration), options.text.samples)
    check_disjoint(other, report)
    return other
