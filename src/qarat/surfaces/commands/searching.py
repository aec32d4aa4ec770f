"""Verbs that search, once or many times: search, study ratio, sweep."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from qarat.ground.errors import NotPassedError
from qarat.jobs import family_sweep, ratio_study
from qarat.jobs.bench import Bench, Member
from qarat.jobs.checks import check_search_request, check_searches
from qarat.jobs.estimates import CHOOSING_FORWARDS, estimate, price_forwards
from qarat.jobs.family_sweep import BUDGET_TABLE, LOSS_TABLE, FamilyJob
from qarat.jobs.folder import STATS, Run
from qarat.jobs.ratio_study import RatioJob
from qarat.jobs.runners import open_runner
from qarat.jobs.runners.base import Runner
from qarat.jobs.search.budgets import plan_file
from qarat.jobs.search.job import KIND, TRIALS, SearchJob
from qarat.jobs.search.nested import SEARCHES
from qarat.surfaces.commands.common import (
    check_weights,
    check_workers,
    command_line,
    load_tokens,
    open_float,
    pricing_work,
    quoted,
    show_estimate,
)
from qarat.surfaces.options.searching import SearchOptions, StudyRatioOptions, SweepOptions
from qarat.surfaces.screens import Lines, Screen
from qarat.values.budgets import parse_size
from qarat.values.records.search import SearchResult


def bench_of(options: SearchOptions | StudyRatioOptions | SweepOptions, runner: Runner, screen: Screen) -> Bench:
    """How plans of a search, a study or a sweep are measured.

    Raises:
        UserError: A malformed size.
    """
    keep = None if options.keep is None else parse_size(options.keep)
    return Bench(runner, options.general.seed, screen.progress, options.general.revision, keep)


def search(options: SearchOptions, screen: Screen) -> Lines:
    """Find the plans that budgets allow, in a folder that survives a kill."""
    check_search_request(options.search)
    check_workers(options.runners)
    folder = Run(options.folder, KIND, overwrite=options.overwrite)
    member = _open_member(options.model, options, screen)
    with open_runner(options.runners.workers, options.runners.ray) as runner:
        job = SearchJob(member, options.search, bench_of(options, runner, screen))
        if options.general.dry_run:
            return _estimate(screen, job, member.tokens[1].windows.numel())
        with folder.work(TRIALS, command=screen.command):
            result = job.execute(folder)
    screen.show(result)
    return _ending(options, options.folder, result, job.static)


def _estimate(screen: Screen, job: SearchJob, tokens: int) -> Lines:
    check_weights(job.model)
    request, units = job.request, len(job.space.units)
    drawn = request.trials * len(job.points)
    plans = {"predicted": CHOOSING_FORWARDS, "greedy": units * (units + 1) // 2}.get(request.strategy, drawn)
    work = {"search": float(plans * tokens)}
    if job.strategy.PREDICTS:
        priced = pricing_work(request.metric, job.model, job.price_tokens, job.priced_schemes)
        work = {"damage": priced, **work}
    return show_estimate(screen, job.model, work, states=tokens * (job.model.blocks + 1))


def _ending(options: SearchOptions, out: Path, result: SearchResult, static: bool) -> Lines:
    stats = ["--stats", out / STATS] if static else []
    plans = [out / plan_file(found.budget) for found in result.reached if found.trial >= 0]
    quantizing = [f"  {command_line('quantize', options, '--plan', plan, *stats)}" for plan in plans[:1]]
    return (
        f"written: {quoted(out)} (every trial in search.json, a plan for each budget)",
        "try next:",
        *quantizing,
        f"  qarat show {quoted(out / 'search.json')}",
    )


def _open_member(name: str, options: SearchOptions | StudyRatioOptions | SweepOptions, screen: Screen) -> Member:
    """A model and its token sets."""
    model = open_float(name, options.machine, options.general)
    return Member(name, model, load_tokens(options.text, model, options.general.seed, screen))


def study_ratio(options: StudyRatioOptions, screen: Screen) -> Lines:
    """Do the second founding paper's experiment on a model, in a folder that survives a kill."""
    request = options.study
    check_searches(request)
    check_workers(options.runners)
    folder = Run(options.folder, ratio_study.KIND, overwrite=options.overwrite)
    member = _open_member(options.model, options, screen)
    with open_runner(options.runners.workers, options.runners.ray) as runner:
        job = RatioJob(member, request, bench_of(options, runner, screen))
        if options.general.dry_run:
            windows = member.tokens[1].windows.numel()
            arms = len(request.blocks) * len(request.granularities())
            predicted = arms * (price_forwards(1) + CHOOSING_FORWARDS)
            work = {"random": float(request.plans() * windows), "predicted": float(predicted * windows)}
            return show_estimate(screen, member.model, work, states=windows * (member.model.blocks + 1))
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
    check_workers(options.runners)
    folder = Run(options.out, family_sweep.KIND, overwrite=options.overwrite)

    def open_member(name: str) -> Member:
        return _open_member(name, options, screen)

    with open_runner(options.runners.workers, options.runners.ray) as runner:
        job = FamilyJob(options.models, open_member, request, bench_of(options, runner, screen))
        if options.general.dry_run:
            return _estimate_sweep(screen, options.models, open_member, len(request.searches()))
        with folder.work(SEARCHES, command=screen.command):
            found = job.execute(folder)
    screen.show(found)
    failed = [f"{p.model}, {p.low}: {p.failure}" for p in found.points if p.failure]
    if failed:
        raise NotPassedError(
            f"{len(failed)} of {len(found.points)} points failed; what was measured is in {quoted(folder.folder)}, and "
            "the same command tries these again:\n  " + "\n  ".join(failed)
        )
    formats = list(dict.fromkeys(point.format for point in found.points))
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
        _, model, tokens = open_member(name)
        check_weights(model)
        windows = tokens[1].windows.numel()
        work = {f"{searches} searches": float(searches * (price_forwards(1) + CHOOSING_FORWARDS) * windows)}
        screen.show(estimate(model, work, states=windows * (model.blocks + 1), disk=0), title=name)
    return ()
