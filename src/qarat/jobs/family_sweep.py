"""A sweep: predicted search over models, formats and block sizes, as the measurements that laws are fitted to.

A point is one search, in a folder of its own and a step of the sweep's run. One that fails stops no other: it is
listed, and what was measured is written; the same command tries again what is missing.
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import msgspec

from qarat.ground.disk import write_whole
from qarat.ground.errors import UserError
from qarat.jobs.bench import Bench, Member
from qarat.jobs.folder import Run, result_of
from qarat.jobs.search.job import SearchJob
from qarat.jobs.search.nested import chosen_plan, reach_of, search_within
from qarat.model.reference_models import trained_tokens
from qarat.stages.laws.tables import Table, write_table
from qarat.values.budgets import parse_loss_budget
from qarat.values.records.files import encode_record
from qarat.values.records.law_data import Measurement
from qarat.values.records.ratios import FamilyPoint, FamilySweep, RatioReach
from qarat.values.records.search import SearchResult
from qarat.values.requests.studies import FamilyRequest
from qarat.values.spellings import format_words, granularity_word, mean_block

_SOURCE = "qarat sweep"
_SIZE = {
    "parameters": "size is the parameters of all sites, of which Q_r is a share; embeddings, head, norms are outside",
    "macs": "size is the parameters of all sites; embeddings, head, norms are outside; Q_r is a share of the "
    "multiplications, those of attention products among them",
}
_ALL = 1 - 1e-9  # a ratio, summed up site by site
_BLOCK = "block is the mean number of weights that share a scale"
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
            ratios=self.request.ratios,
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


# ---------------------------------------------------------------- tables


def loss_table(sweep: FamilySweep) -> Table:
    """What every measured plan loses on the report tokens, each plan once."""
    rows = [row for point in sweep.points for row in _losses(sweep, point)]
    how = f"Best predicted plan at each ratio, its loss over float paired by windows; {_SIZE[sweep.basis]}; {_BLOCK}"
    return Table(
        "sweep", f"{sweep.family}, loss increase against ratio, {sweep.planning}", _SOURCE, how, (), tuple(rows)
    )


def budget_table(sweep: FamilySweep) -> Table:
    """The highest Q_r within each budget, as in the second founding paper's Fig. 6; budgets met by no plan have no row.

    Neither have those met with everything low, of which it is not known how far they reach: the defects name them. The
    value is the budget itself: what the plan was allowed to lose on the selection tokens, not what it lost.
    """
    rows = [row for point in sweep.points for row in _budgets(sweep, point)]
    reached = "Highest ratio of a measured plan that keeps the budget on the selection tokens"
    how = f"{reached}; {_SIZE[sweep.basis]}; {_BLOCK}"
    title = f"{sweep.family}, the ratio that loss budgets allow, {sweep.planning}"
    defects = tuple(defect for point in sweep.points for defect in _bounds(point))
    return Table("budgets", title, _SOURCE, how, defects, tuple(rows))


def _losses(sweep: FamilySweep, point: FamilyPoint) -> Iterator[Measurement]:
    plans = [plan for plan in point.plans if not math.isnan(plan.report.nats)]
    for plan in dict.fromkeys(plans):  # two ratios may have come to one plan
        error = _known(plan.report.standard_error)
        yield _row(sweep, point, plan.ratio, plan.bits, "loss-increase", plan.report.nats, error)


def _budgets(sweep: FamilySweep, point: FamilyPoint) -> Iterator[Measurement]:
    for reach in point.reached:
        if not math.isnan(reach.plan.ratio) and not _saturated(reach):
            increase = 100 * math.expm1(parse_loss_budget(reach.budget).nats)
            yield _row(sweep, point, reach.plan.ratio, reach.plan.bits, "perplexity-increase", increase, None)


def _bounds(point: FamilyPoint) -> Iterator[str]:
    """The budgets of a point that say no more than that its ratio could be higher, if any."""
    met = [reach.budget for reach in point.reached if _saturated(reach)]
    if met:
        where = f"{point.model}, {point.format}, block {point.block:.4g}"
        yield f"{where}: everything low meets {', '.join(met)}, so that 1 is a bound and no measurement: no row"


def _saturated(reach: RatioReach) -> bool:
    return reach.plan.ratio >= _ALL


def _row(
    sweep: FamilySweep, point: FamilyPoint, ratio: float, bits: float, metric: str, value: float, error: float | None
) -> Measurement:
    return Measurement(
        source=_SOURCE,
        family=sweep.family,
        model=point.model,
        size=point.size,
        tokens=_known(point.tokens),
        format=point.format,
        planning=sweep.planning,
        granularity=point.granularity,
        ratio_basis=sweep.basis,
        ratio=ratio,
        block=point.block,
        bits=bits,
        metric=metric,
        value=value,
        base_value=None,
        higher_is_better=False,
        standard_error=error,
        evaluation=point.evaluation,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
