"""The verbs that search many times: `study ratio` and `sweep`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from qarat.ground.errors import NotPassedError
from qarat.jobs.bench import Member
from qarat.jobs.checks import check_family_request, check_ratio_request
from qarat.jobs.estimates import CHOOSING_FORWARDS, estimate, price_forwards
from qarat.jobs.family_sweep import job as family_sweep
from qarat.jobs.family_sweep.job import BUDGET_TABLE, LOSS_TABLE, FamilyJob
from qarat.jobs.folder import Run
from qarat.jobs.ratio_study import job as ratio_study
from qarat.jobs.ratio_study.job import RatioJob
from qarat.jobs.runners import open_runner
from qarat.jobs.search.nested import SEARCHES
from qarat.surfaces import options
from qarat.surfaces.commands.common import (
    check_weights,
    check_workers,
    load_tokens,
    open_float_named,
    quoted,
    show_estimate,
)
from qarat.surfaces.commands.search import setting_of
from qarat.surfaces.screens import Lines, Screen
from qarat.values.requests.family_sweep import FamilyRequest
from qarat.values.requests.ratio_study import RatioRequest


def study_ratio(asked: options.StudyRatio, screen: Screen) -> Lines:
    """Do the second founding paper's experiment on a model, in a folder that survives a kill."""
    request = _study_request(asked)
    check_workers(asked.runners)
    out = asked.out or Path(f"{Path(asked.model).resolve().name}-ratio")
    folder = Run(out, ratio_study.KIND, overwrite=asked.overwrite)
    model = open_float_named(asked.model, asked)
    tokens = load_tokens(asked, model, screen)
    with open_runner(asked.runners.workers, asked.runners.ray) as runner:
        job = RatioJob(Member(asked.model, model, tokens), request, setting_of(asked, runner, screen))
        if asked.general.dry_run:
            windows = tokens[1].windows.numel()
            arms = len(request.blocks) * len(request.granularities())
            predicted = arms * (price_forwards(1) + CHOOSING_FORWARDS)
            work = {"random": float(request.plans() * windows), "predicted": float(predicted * windows)}
            return show_estimate(screen, model, work, states=windows * (model.blocks + 1))
        with folder.work(SEARCHES, command=screen.command):
            study = job.execute(folder)
    screen.show(study)
    return (f"written: {quoted(out)} (every search in {SEARCHES}/, what came of them in {ratio_study.RESULT})",)


def sweep(asked: options.Sweep, screen: Screen) -> Lines:
    """Search a family of models, and write the table that laws are fitted to."""
    request = _sweep_request(asked)
    check_workers(asked.runners)
    folder = Run(asked.out, family_sweep.KIND, overwrite=asked.overwrite)

    def open_member(name: str) -> Member:
        model = open_float_named(name, asked)
        return Member(name, model, load_tokens(asked, model, screen))

    with open_runner(asked.runners.workers, asked.runners.ray) as runner:
        job = FamilyJob(asked.models, open_member, request, setting_of(asked, runner, screen))
        if asked.general.dry_run:
            return _estimate_sweep(screen, asked.models, open_member, len(request.searches()))
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
    reached = f", what budgets reach in {BUDGET_TABLE}" if (asked.out / BUDGET_TABLE).exists() else ""
    return (
        f"written: {quoted(asked.out)} (plans in {LOSS_TABLE}{reached})",
        f"try next: {shlex.join(['qarat', 'law', 'fit', str(asked.out / LOSS_TABLE), *one])}",
    )


def _study_request(asked: options.StudyRatio) -> RatioRequest:
    request = RatioRequest(
        asked.low,
        asked.blocks,
        asked.ratios,
        asked.layer_ratios,
        asked.budgets,
        asked.trials,
        asked.best_of,
        asked.best_of_ratio,
        asked.basis,
        asked.metric,
        asked.price_windows,
    )
    check_ratio_request(request)
    return request


def _sweep_request(asked: options.Sweep) -> FamilyRequest:
    request = FamilyRequest(
        asked.formats,
        asked.blocks,
        asked.ratios,
        asked.budgets,
        asked.granularity,
        asked.basis,
        asked.metric,
        asked.price_windows,
        asked.family,
    )
    check_family_request(request)
    return request


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
