"""The verb `search`: how much can go low within a budget."""

from __future__ import annotations

from pathlib import Path

from qarat import options
from qarat.budgets import parse_size
from qarat.commands.common import (
    check_weights,
    check_workers,
    command_line,
    load_tokens,
    open_float,
    pricing_work,
    quoted,
    show_estimate,
)
from qarat.estimates import SWEEP_FORWARDS
from qarat.runners import Runner, open_runner
from qarat.screens import Lines, Screen
from qarat.searches import SearchResult
from qarat.searching import STATS, TRIALS, Member, SearchJob, SearchRequest, Setting, plan_file
from qarat.workspace import Run

__all__ = ["search", "setting_of"]


def setting_of(asked: options.Searching, runner: Runner, screen: Screen) -> Setting:
    """How plans of a search, a study or a sweep are measured.

    Raises:
        UserError: A malformed size.
    """
    keep = None if asked.keep is None else parse_size(asked.keep)
    return Setting(runner, asked.general.seed, screen.progress, asked.general.revision, keep)


def search(asked: options.Search, screen: Screen) -> Lines:
    """Find the plans that budgets allow, in a folder that survives a kill."""
    request = _request(asked)
    check_workers(asked.runners)
    out = asked.out or Path(f"{Path(asked.model).resolve().name}-search")
    folder = Run(out, overwrite=asked.overwrite)
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
    request.check()
    return request


def _estimate(screen: Screen, job: SearchJob, tokens: int) -> Lines:
    check_weights(job.model)
    request, units = job.request, len(job.space.units)
    drawn = request.trials * len(job.points)
    plans = {"predicted": SWEEP_FORWARDS, "greedy": units * (units + 1) // 2}.get(request.strategy, drawn)
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
