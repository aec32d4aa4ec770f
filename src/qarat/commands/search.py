"""The verb `search`: how much can go low within a budget."""

from __future__ import annotations

from pathlib import Path

from qarat import options
from qarat.budgets import parse_size
from qarat.commands.common import check_weights, command_line, load_tokens, open_float, quoted, show_estimate
from qarat.errors import ArgumentError
from qarat.estimates import SWEEP_FORWARDS, price_forwards
from qarat.models import Model
from qarat.runners import open_runner
from qarat.screens import Lines, Screen
from qarat.searching import STATS, TRIALS, SearchJob, SearchRequest, plan_file
from qarat.workspace import Run

__all__ = ["search"]


def search(asked: options.Search, screen: Screen) -> Lines:
    """Find the plans that budgets allow, in a folder that survives a kill."""
    request = _request(asked)
    if asked.runners.workers < 1:
        raise ArgumentError(f"--workers {asked.runners.workers}: give at least 1")
    out = asked.out or Path(f"{Path(asked.model).resolve().name}-search")
    folder = Run(out, overwrite=asked.overwrite)
    model = open_float(asked)
    tokens = load_tokens(asked, model, screen)
    keep = None if asked.keep is None else parse_size(asked.keep)
    with open_runner(asked.runners.workers, asked.runners.ray) as runner:
        job = SearchJob(
            model,
            tokens,
            request,
            runner,
            name=asked.model,
            seed=asked.general.seed,
            progress=screen.progress,
            revision=asked.general.revision,
            keep_bytes=keep,
        )
        if asked.general.dry_run:
            return _estimate(screen, model, request, tokens[1].windows.numel(), len(job.space.options))
        try:
            folder.begin(command=screen.command)
            result = job.execute(folder)
        except BaseException:
            folder.leave(TRIALS)
            raise
    screen.show(result)
    return _ending(asked, out, request, job.static)


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


def _estimate(screen: Screen, model: Model, request: SearchRequest, tokens: int, schemes: int) -> Lines:
    check_weights(model)
    plans = SWEEP_FORWARDS if request.strategy == "predicted" else request.trials * max(1, len(request.points))
    work = {"damage": price_forwards(schemes) * tokens, "search": plans * tokens}
    return show_estimate(screen, model, work, states=tokens * (model.blocks + 1))


def _ending(asked: options.Search, out: Path, request: SearchRequest, static: bool) -> Lines:
    plan = out / plan_file(request.budgets[0])
    stats = ["--stats", out / STATS] if static else []
    return (
        f"written: {quoted(out)} (every trial in search.json, a plan for each budget)",
        "try next:",
        f"  {command_line('quantize', asked, '--plan', plan, *stats)}",
        f"  qarat show {quoted(out / 'search.json')}",
    )
