"""Searches inside a larger run: each a folder of its own and a step of the run, so that a kill costs little."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from qarat.ground.disk import hash_json, write_whole
from qarat.jobs.folder import MENU, STATS, Run
from qarat.jobs.search.job import KIND, RESULT, TRIALS, SearchJob
from qarat.values.records.files import decode_record
from qarat.values.records.ratios import RatioPlan, RatioReach
from qarat.values.records.search import Reached, SearchResult

SEARCHES = "searches"
"""Folder of all of them, below a run's."""
_BASIS = "basis.txt"
"""Hash of what a search's prices and measured plans depend on, so that another request may take them over."""
_ASKED = ("budgets", "points", "trials")  # of a request: which plans it asks for, and nothing of what they lose


def search_within(run: Run, folder: str, job: SearchJob) -> SearchResult:
    """Run a search as a step, in a folder below the run's; one that was begun goes on from its trial log.

    What an earlier request has priced and measured of the same model, tokens and schemes is taken over, be it in this
    folder or in the finished run that this one will replace.

    Args:
        run: That was begun.
        folder: Where, below `SEARCHES` in the run's folder; also the step's name.
        job: The search.
    """
    place = f"{SEARCHES}/{folder}"

    def work() -> None:
        # What lies there whole is of an earlier request, or its step was not written down in time.
        inner = Run(run.path(place), KIND, overwrite=True)
        basis = _basis(job)
        _take_over(inner, (inner.out, run.out / place), basis)
        with inner.work(TRIALS):
            write_whole(inner.path(_BASIS), basis)
            job.execute(inner)

    result = f"{place}/{RESULT}"
    run.step(folder, job.key, [result], work)
    return decode_record(run.path(result), SearchResult)


def _basis(job: SearchJob) -> str:
    request = {k: v for k, v in msgspec.structs.asdict(job.request).items() if k not in _ASKED}
    return hash_json({**job.key, "report": "", "request": request})


def _take_over(inner: Run, finished: Iterable[Path], basis: str) -> None:
    """Begin a search's folder with stats, prices and measured plans of the first finished one with the same basis."""
    if inner.folder.exists():  # it was begun, and has its own
        return
    for folder in finished:
        mark = folder / _BASIS
        if mark.is_file() and mark.read_text() == basis:
            # The manifest first, which makes the folder one of ours; a step whose files do not follow is done again.
            for name in (Run.MANIFEST, STATS, MENU, TRIALS):
                if (folder / name).is_file():
                    write_whole(inner.path(name), (folder / name).read_bytes())
            return


def chosen_plan(result: SearchResult, reached: Reached) -> RatioPlan:
    """What a budget of a search came to; NaN throughout where nothing meets it."""
    if reached.trial < 0:
        return RatioPlan()
    trial = result.trials[reached.trial]
    return RatioPlan(trial.ratio, trial.bits, trial.damage, result.on_report(reached))


def reach_of(result: SearchResult, budget: str) -> RatioReach:
    """What a loss budget of a search reaches."""
    reached = result.budget(budget)
    return RatioReach(budget, chosen_plan(result, reached), reached.low, reached.high)


def count_plans(folder: Path) -> int:
    """Plans measured so far by all searches of a folder; the first line of a trial log is no plan."""
    return sum(max(0, len(log.read_text().splitlines()) - 1) for log in folder.rglob(TRIALS))
