"""A sweep: predicted search over models, formats and block sizes, as the measurements that laws are fitted to.

A point is one search, in a folder of its own and a step of the sweep's run. One that fails stops no other: it is
listed, and what was measured is written; the same command tries again what is missing.
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

import msgspec

from qarat.ground.disk import write_whole
from qarat.ground.errors import UserError
from qarat.jobs.bench import Bench, Member
from qarat.jobs.family_sweep.tables import budget_table, loss_table
from qarat.jobs.folder import Run, result_of
from qarat.jobs.search.job import SearchJob
from qarat.jobs.search.nested import chosen_plan, reach_of, search_within
from qarat.model.reference_models import trained_tokens
from qarat.stages.laws.tables import write_table
from qarat.values.block_sizes import format_words, granularity_word, mean_block
from qarat.values.records.family import FamilyPoint, FamilySweep
from qarat.values.records.files import encode_record
from qarat.values.records.search import SearchResult
from qarat.values.requests.family_sweep import FamilyRequest

_FEWEST_TOKENS = 1e3  # a table of measurements takes no fewer
KIND = "family-sweep"
RESULT, LOSS_TABLE, BUDGET_TABLE = result_of(KIND), "sweep.csv", "budgets.csv"


class FamilyJob:
    """A sweep: models by name, and what is to be measured of each."""

    def __init__(
        self, names: Sequence[str], open_member: Callable[[str], Member], request: FamilyRequest, setting: Bench
    ) -> None:
        """Open every model once, and check every search against it; nothing long is done.

        Args:
            names: Of the models; each is open only while it is measured.
            open_member: Opens one.
            request: Checked already.
            setting: How plans are measured.

        Raises:
            UserError: Names that are the same or have no beginning in common, or whatever is wrong with any model,
                all at once.
        """
        self.names, self.request, self.setting = tuple(names), request, setting
        self._open = open_member
        self._searches = request.searches()
        called = [_last(name) for name in names]
        if twice := sorted({name for name in called if called.count(name) > 1}):
            raise UserError(f"{', '.join(twice)}: two models of one name; rename a folder")
        self.family = request.family or _family(called)
        self._points: dict[str, list[FamilyPoint]] = {}
        problems: list[str] = []
        for name in names:
            try:
                member = open_member(name)
                for search in self._searches:
                    SearchJob(member, search, setting)
                self._points[name] = [self._describe(member, search.low) for search in self._searches]
            except UserError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise UserError("\n".join(problems))

    def execute(self, run: Run) -> FamilySweep:
        """Measure every point that is not measured yet, and write the tables.

        The folder is put into place once no point has failed; until then it stays ``OUT.partial``, tables included.
        """
        points: list[FamilyPoint] = []
        for name in self.names:
            points += self._measure(run, name, len(points))
            sweep = FamilySweep(self.family, f"{self.request.granularity}-wise", self.request.basis, tuple(points))
            self._write(run, sweep)
        if not any(point.failure for point in points):
            run.finish()
        return sweep

    def _measure(self, run: Run, name: str, before: int) -> list[FamilyPoint]:
        """The points of one model, which so many of others went before."""
        points: list[FamilyPoint] = []
        member: Member | None = None
        for search, point in zip(self._searches, self._points[name], strict=True):
            folder = f"{_slug(point.model)}/{_slug(search.low)}"
            place = f"{before + len(points) + 1}/{len(self.names) * len(self._searches)} {point.model} {search.low},"
            try:
                member = member or self._open(name)
                result = search_within(run, folder, SearchJob(member, search, self.setting.within(place)))
                points.append(self._filled(point, result))
            except Exception as error:  # whatever it is, other points may still be measured; the log has all of it
                run.log(point=folder, error=traceback.format_exc())
                failure = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                points.append(msgspec.structs.replace(point, failure=failure))
        return points

    def _filled(self, point: FamilyPoint, result: SearchResult) -> FamilyPoint:
        plans = {r.budget: chosen_plan(result, r) for r in result.reached}
        return msgspec.structs.replace(
            point,
            asked=self.request.ratios,
            plans=tuple(plans[f"ratio={ratio:g}"] for ratio in self.request.ratios),
            reached=tuple(reach_of(result, budget) for budget in self.request.budgets),
        )

    def _describe(self, member: Member, low: str) -> FamilyPoint:
        sites = member.model.sites()
        _, selection, report = member.tokens
        evaluation = (
            f"text {report.text_fingerprint[:8]}, {report.convention}, {len(report)} windows; plans predicted by "
            f"{self.request.metric}, chosen on {len(selection)} others"
        )
        return FamilyPoint(
            _last(member.name),
            float(sum(site.parameters for site in sites)),
            _trained_tokens(member.model.folder),
            format_words(low),
            low,
            granularity_word(low),
            mean_block(low, sites),
            evaluation,
        )

    def _write(self, run: Run, sweep: FamilySweep) -> None:
        write_whole(run.path(RESULT), encode_record(sweep))
        for name, table in ((LOSS_TABLE, loss_table(sweep)), (BUDGET_TABLE, budget_table(sweep))):
            if table.rows:
                write_whole(run.path(name), write_table(table))
            else:  # a table without rows could not be read, and what an earlier call left is not of this one
                run.path(name).unlink(missing_ok=True)


def _trained_tokens(folder: Path) -> float:
    """D as the model's card has it; NaN where it does not say.

    Raises:
        UserError: The card is damaged, or what it says is no number of tokens.
    """
    try:
        tokens = trained_tokens(folder)
    except (AttributeError, TypeError, ValueError):
        tokens = -1.0
    if not math.isnan(tokens) and not _FEWEST_TOKENS <= tokens < math.inf:
        raise UserError(
            f'{folder / "training.json"} must hold {{"tokens": …}}, the training tokens, a number of at least '
            f"{_FEWEST_TOKENS:g}; put it right, or delete the file if that is not known"
        )
    return tokens


def _last(name: str) -> str:
    """A model's own name: the last part of a path or a hub id."""
    return Path(name).resolve().name if Path(name).is_dir() else name.rpartition("/")[2]


def _family(names: Sequence[str]) -> str:
    """What the names begin with, without the number at its end.

    Raises:
        UserError: If that is nothing.
    """
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    family = re.sub(r"[-_.\d]+$", "", "".join(letters[0] for letters in same))
    if not family:
        raise UserError(f"{', '.join(names)}: the names have no beginning in common; say what they are with `family`")
    return family


def _slug(text: str) -> str:
    """A text as a folder's name."""
    return re.sub(r"[^\w.]+", "-", text)
