"""The verb `search`: how much can go low within a budget."""

from __future__ import annotations

from pathlib import Path

from qarat.jobs.bench import Bench, Member
from qarat.jobs.checks import check_search_request
from qarat.jobs.estimates import CHOOSING_FORWARDS
from qarat.jobs.folder import Run
from qarat.jobs.runners import open_runner
from qarat.jobs.runners.base import Runner
from qarat.jobs.search.chosen import plan_file
from qarat.jobs.search.job import KIND, TRIALS, SearchJob
from qarat.jobs.steps import STATS
from qarat.surfaces import options
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
from qarat.surfaces.screens import Lines, Screen
from qarat.values.budgets import parse_size
from qarat.values.records.search import SearchResult
from qarat.values.requests.search import SearchRequest


def setting_of(asked: options.Searching, runner: Runner, screen: Screen) -> Bench:
    """How plans of a search, a study or a sweep are measured.

    Raises:
        UserError: A malformed size.
    """
    keep = None if asked.keep is None else parse_size(asked.keep)
    return Bench(runner, asked.general.seed, screen.progress, asked.general.revision, keep)


def search(asked: options.Search, screen: Screen) -> Lines:
    """Find the plans that budgets allow, in a folder that survives a kill."""
    request = _request(asked)
    check_workers(asked.runners)
    out = asked.out or Path(f"{Path(asked.model).resolve().name}-search")
    folder = Run(out, KIND, overwrite=asked.overwrite)
    model = open_float(asked)
    tokens = load_tokens(asked, model, screen)
    with open_runner(asked.runners.workers, asked.runners.ray) as runner:
        job = SearchJob(Member(asked.model, model, tokens), request, setting_of(asked, runner, screen))
        if asked.general.dry_run:
            return _estimate(screen, job, tokens[1].windows.numel())
        with folder.work(TRIALS, command=screen.command):
            result = job.execute(folder)
    screen.show(result)
    return _ending(asked, out, result, job.static)


def _request(asked: options.Search) -> SearchRequest:
    request = SearchRequest(
        asked.low,
        asked.high,
        asked.menu,
        asked.granularity,
        asked.basis,
        asked.budget,
        asked.points,
        asked.strategy,
        asked.metric,
        asked.trials,
        asked.set,
        asked.runtime,
        asked.price_windows,
    )
    check_search_request(request)
    return request


def _estimate(screen: Screen, job: SearchJob, tokens: int) -> Lines:
    check_weights(job.model)
    request, units = job.request, len(job.space.units)
    drawn = request.trials * len(job.points)
    plans = {"predicted": CHOOSING_FORWARDS, "greedy": units * (units + 1) // 2}.get(request.strategy, drawn)
    work = {"search": float(plans * tokens)}
    if job.strategy.predicts:
        priced = pricing_work(request.metric, job.model, job.price_tokens, job.priced_schemes)
        work = {"damage": priced, **work}
    return show_estimate(screen, job.model, work, states=tokens * (job.model.blocks + 1))


def _ending(asked: options.Search, out: Path, result: SearchResult, static: bool) -> Lines:
    stats = ["--stats", out / STATS] if static else []
    plans = [out / plan_file(found.budget) for found in result.reached if found.trial >= 0]
    quantizing = [f"  {command_line('quantize', asked, '--plan', plan, *stats)}" for plan in plans[:1]]
    return (
        f"written: {quoted(out)} (every trial in search.json, a plan for each budget)",
        "try next:",
        *quantizing,
        f"  qarat show {quoted(out / 'search.json')}",
    )
