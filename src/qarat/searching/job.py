"""The job of a search: steps in a folder, from profile to plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from qarat import damage
from qarat.budgets import AccuracyBudget, Budget, CostBudget, LossBudget, parse_budget
from qarat.calibration import is_static
from qarat.conversion import check_stats, quantize
from qarat.damage.checking import FEWEST, fit_correction
from qarat.data import TokenSet
from qarat.errors import UserError
from qarat.evaluation.harness import import_harness
from qarat.evaluation.zero_shot import OWN_TASKS, measure_tasks
from qarat.measuring import specify
from qarat.metricrecords import Correction
from qarat.models import Model
from qarat.observation import observe
from qarat.planning import ENGINES_THAT_FUSE, draft_plan
from qarat.plans import Plan, match_sites
from qarat.recordfiles import content_hash, decode_record, encode_record
from qarat.records import ActivationStats, Evaluation, Menu, ZeroShot
from qarat.runners import open_runner
from qarat.schemes import LinearScheme, MatmulScheme, Scheme
from qarat.search.driver import Driver
from qarat.search.outcomes import point_of, reach
from qarat.search.space import Space, make_space
from qarat.search.strategies import make_strategy
from qarat.search.strategies.base import Goal, Strategy
from qarat.search.trials import TrialLog
from qarat.searches import NO_CORRECTION, Choice, Reached, SearchCost, SearchResult, SearchTrial, pareto
from qarat.searching.accuracy import reach_accuracy
from qarat.searching.measurer import Measurer, ProgressWatcher
from qarat.searching.request import BITS, POINTS, SearchRequest
from qarat.searching.setting import Member, Setting
from qarat.workspace import Progress, Run, hash_json, no_progress, write_whole

__all__ = ["MENU", "RESULT", "STATS", "TRIALS", "SearchJob", "plan_file", "search_plans"]

STATS, MENU, TRIALS, RESULT = "stats.safetensors", "menu.json", "trials.jsonl", "search.json"
TALLY = "forwards-{}.txt"


class SearchJob:
    """One search: a model, what is to be found out, and how."""

    def __init__(self, member: Member, request: SearchRequest, setting: Setting) -> None:
        """Check the request against the model; nothing long is done.

        Args:
            member: Model and tokens.
            request: Checked already.
            setting: How plans are measured.

        Raises:
            UserError: A pattern that matches nothing, ties broken, nothing left to decide, a budget of another axis.
        """
        member.model.require_float("search")
        self.member, self.request, self.setting = member, request, setting
        self.model, self.progress = member.model, setting.progress
        self.calibration, self.selection, self.report = member.tokens
        self.space = self._space(draft_plan(self.model, request.as_plan_request()))
        self.points = self._points(self.space)
        _check_tasks(request.parsed_budgets())

    @property
    def static(self) -> bool:
        """Whether any scale comes from stats, so that the model has to be profiled."""
        return any(is_static(scheme) for option in self.space.options for scheme in option) or any(
            is_static(a.scheme) for a in self.space.base.assignments
        )

    @property
    def key(self) -> dict[str, object]:
        """Everything that decides the result's bytes."""
        return {
            "model": self.model.fingerprint,
            "versions": self.model.provenance("", "").versions,
            "dtype": self.model.runtime.dtype,
            "calibration": self.calibration.fingerprint if self.static else "",
            "selection": self.selection.fingerprint,
            "seed": self.setting.seed,
            "request": msgspec.to_builtins(self.request),
            "report": self.report.fingerprint,
        }

    def execute(self, run: Run) -> SearchResult:
        """Do every step that is not done yet, and put the folder into place."""
        whole = self.key
        key = {name: whole[name] for name in ("model", "versions", "dtype", "calibration")}
        before: list[str] = []
        if self.static:
            run.step("profile", key, [STATS], lambda: self._profile(run))
            before.append("profile")
        key |= {name: whole[name] for name in ("selection", "seed")}
        priced = msgspec.structs.asdict(self.request)
        priced = {name: priced[name] for name in ("low", "high", "menu", "basis", "metric", "price_windows")}
        if make_strategy(self.request.strategy, trials=1, seed=0).predicts:
            run.step("damage", [key, priced], [MENU], lambda: self._price(run), after=before)
            before.append("damage")
        plans = [plan_file(budget) for budget in self.request.budgets]
        run.step("search", whole, [RESULT, *plans], lambda: self._search(run), after=before)
        result = decode_record(run.path(RESULT), SearchResult)
        run.finish()
        return result

    def _space(self, base: Plan) -> Space:
        request = self.request
        matched = [match_sites(pattern, base.sites) for pattern, _ in request.as_plan_request().overrides()]
        return make_space(
            base,
            request.options(),
            pinned={site.name for sites in matched for site in sites},
            layers=request.granularity == "layer",
            tied=request.runtime in ENGINES_THAT_FUSE,
            basis=request.basis,
            length=self.selection.windows.shape[1],
            axis=request.axis,
        )

    def _profile(self, run: Run) -> None:
        write_whole(run.path(STATS), encode_record(observe(self.model, self.calibration, progress=self.progress)))

    def _price(self, run: Run) -> None:
        price = damage.load(self.request.metric)
        schemes, stats = self._priced_schemes(), self._stats(run)
        menu = price(self.model, self._price_tokens(), schemes, stats, seed=self.setting.seed, progress=self.progress)
        write_whole(run.path(MENU), encode_record(menu))

    def _priced_schemes(self) -> list[Scheme]:
        """Every scheme of the options, float left out, each once."""
        schemes = dict.fromkeys(scheme for option in self.space.options for scheme in option)
        return [scheme for scheme in schemes if scheme not in (LinearScheme(), MatmulScheme())]

    def _search(self, run: Run) -> None:
        stats = self._stats(run)
        space = self._space(
            draft_plan(self.model, self.request.as_plan_request(), content_hash(stats) if stats else "")
        )
        for option in range(len(space.options)):
            check_stats(space.plan((option,) * len(space.units), ""), stats)
        strategy = make_strategy(self.request.strategy, trials=self.request.trials, seed=self.setting.seed)
        # Of this request: another one in the same folder takes the log over, and not what the first one spent.
        asked = hash_json(msgspec.to_builtins(self.request))[:8]
        measurer = self._measurer(stats, self.selection, run.path(TALLY.format(asked)))
        log = TrialLog(run.path(TRIALS), self._log_header(space))
        watcher = ProgressWatcher(self.progress, self.request.parsed_budgets(), space)
        driver = Driver(space, measurer, log, watcher)
        menu = decode_record(run.path(MENU), Menu) if strategy.predicts else None
        driver.run(strategy, self._goal(space, strategy, menu))
        reached = [self._reach(budget, stats, space, driver) for budget in self.request.parsed_budgets()]
        float_report, reached = self._on_report(stats, space, driver.trials, reached)
        cost = SearchCost(self._pricing_cost(strategy), measurer.forwards)
        write_whole(run.path(RESULT), encode_record(self._result(space, driver, menu, float_report, reached, cost)))
        for budget, found in zip(self.request.budgets, reached, strict=True):
            plan = space.plan(_choice(parse_budget(budget), found, driver.trials, space), budget)
            write_whole(run.path(plan_file(budget)), encode_record(msgspec.structs.replace(plan, note=found.verdict)))

    def _reach(self, budget: Budget, stats: ActivationStats | None, space: Space, driver: Driver) -> Reached:
        if not isinstance(budget, AccuracyBudget):
            return reach(budget, driver.trials, space, driver.float_loss)

        def score(trial: SearchTrial) -> ZeroShot:
            model = quantize(self.model, space.plan(trial.choice, budget.spelling), stats)
            return measure_tasks(model, [budget.task], label=trial.label, progress=self.progress)

        curve = [(driver.trials.index(trial), trial) for trial in pareto(driver.trials, space.axis)]
        float_score = measure_tasks(self.model, [budget.task], label="float", progress=self.progress)
        return reach_accuracy(budget, curve, float_score, score)

    def _measurer(self, stats: ActivationStats | None, tokens: TokenSet, tally: Path | None = None) -> Measurer:
        spec = specify(
            self.model,
            self.member.name,
            tokens,
            stats,
            revision=self.setting.revision,
            keep_bytes=self.setting.keep_bytes,
            share=self.setting.runner.share,
        )
        return Measurer(self.setting.runner, spec, tally)

    def _result(
        self,
        space: Space,
        driver: Driver,
        menu: Menu | None,
        float_report: Evaluation,
        reached: Sequence[Reached],
        cost: SearchCost,
    ) -> SearchResult:
        request = self.request
        return SearchResult(
            driver.float_loss.provenance,
            request.strategy,
            request.metric if menu is not None else "",
            request.granularity,
            request.basis,
            space.axis,
            request.schemes(),
            tuple(u.label for u in space.units),
            content_hash(space.base),
            driver.float_loss,
            float_report,
            tuple(driver.trials),
            tuple(reached),
            cost,
            _correction(driver.trials) if menu is not None and menu.in_nats else NO_CORRECTION,
        )

    def _goal(self, space: Space, strategy: Strategy, menu: Menu | None) -> Goal:
        budgets = self.request.parsed_budgets()
        losses = tuple(b.nats for b in budgets if isinstance(b, LossBudget))
        points = self._points(space)
        # Strategies that draw need points to draw at, and a budget of accuracy a curve to go along.
        needed = not losses or strategy.draws or any(isinstance(b, AccuracyBudget) for b in budgets)
        if not points and needed:
            points = list(POINTS[self.request.granularity]) if space.axis == "ratio" else [-x for x in BITS]
        points = tuple(dict.fromkeys(points))
        if menu is None:
            return Goal(points, losses)
        return Goal(points, losses, space.predictions(menu), space.prediction_errors(menu))

    def _points(self, space: Space) -> list[float]:
        """Places on the axis that were asked for, as points or as budgets of cost."""
        asked = [p if space.axis == "ratio" else -p for p in self.request.points]
        return asked + [point_of(b, space) for b in self.request.parsed_budgets() if isinstance(b, CostBudget)]

    def _on_report(
        self, stats: ActivationStats | None, space: Space, trials: Sequence[SearchTrial], reached: Sequence[Reached]
    ) -> tuple[Evaluation, list[Reached]]:
        """What float and the chosen plans lose on the report tokens, which no choice has seen."""
        chosen = list(dict.fromkeys(trials[r.trial].choice for r in reached if r.trial >= 0))
        driver = Driver(space, self._measurer(stats, self.report), TrialLog(None, {}))
        losses = dict(zip(chosen, driver.losses(chosen), strict=True))

        def measured(found: Reached) -> Reached:
            report = losses[trials[found.trial].choice]
            verdict = found.verdict if report else f"{found.verdict}; on the report tokens it cannot be measured"
            return msgspec.structs.replace(found, report=report, verdict=verdict)

        return driver.float_loss, [measured(found) if found.trial >= 0 else found for found in reached]

    def _stats(self, run: Run) -> ActivationStats | None:
        return decode_record(run.path(STATS), ActivationStats) if self.static else None

    def _log_header(self, space: Space) -> dict[str, object]:
        provenance = self.model.provenance(self.selection.fingerprint, self.selection.convention)
        return {"provenance": msgspec.to_builtins(provenance), "base": content_hash(space.base)}

    def _pricing_cost(self, strategy: Strategy) -> int:
        if not strategy.predicts:
            return 0
        count, tokens = damage.block_forwards(self.request.metric), self._price_tokens()
        return count(self.model, tokens, self._priced_schemes()) * tokens.windows.numel()

    def _price_tokens(self) -> TokenSet:
        return self.selection.subset(min(self.request.price_windows, len(self.selection)))


def search_plans(
    model: Model,
    tokens: tuple[TokenSet, TokenSet, TokenSet],
    request: SearchRequest,
    out: Path,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress = no_progress,
) -> SearchResult:
    """Find the plans that budgets allow, as the verb ``search`` does; a folder that was begun is gone on with.

    Args:
        model: In float.
        tokens: Calibration, selection and report.
        request: What is to be found out.
        out: Folder of result, plans and trial log; it must not be there yet.
        seed: Of draws and labels.
        workers: Processes that measure plans; 1 is this one.
        progress: Told of every stage.

    Raises:
        UserError: What is wrong with the request, for this model or at all; ``out`` is there.
    """
    request.check()
    run = Run(out)
    with open_runner(workers) as runner:
        job = SearchJob(Member(str(model.folder), model, tokens), request, Setting(runner, seed, progress))
        with run.work(TRIALS):
            return job.execute(run)


def _correction(trials: Sequence[SearchTrial]) -> Correction:
    """What predictions come to; losses lost in noise cannot be fitted."""
    pairs = [(t.predicted, t.damage.nats) for t in trials if t.predicted > 0 and t.damage.nats > 0]
    try:
        return fit_correction(pairs) if len(pairs) >= FEWEST else NO_CORRECTION
    except UserError:  # losses fall where predictions rise: there is nothing that a correction could put right
        return NO_CORRECTION


def _check_tasks(budgets: Sequence[Budget]) -> None:
    """Check, before any work, that the tasks of budgets can be measured, on questions that no report is about.

    Raises:
        UserError: The harness is missing; or a task whose questions are the report text, or need a folder.
    """
    for budget in budgets:
        if isinstance(budget, AccuracyBudget):
            if budget.task in OWN_TASKS or budget.task.endswith("_local"):
                raise UserError(
                    f"--budget {budget.spelling}: {budget.task} cannot choose plans, as its questions are the report "
                    "text or lie in a folder; take a task of the lm-evaluation-harness"
                )
            import_harness("lm_eval")


def _choice(budget: Budget, found: Reached, trials: Sequence[SearchTrial], space: Space) -> Choice:
    """What is written for a budget: its plan; where nothing meets it the nearest there is, so that no file is missing.

    Nearest is the highest plan for a loss, and the cheapest that was tried for a cost.
    """
    if found.trial >= 0:
        return trials[found.trial].choice
    tried = [t for t in trials if not t.failure]
    if isinstance(budget, CostBudget) and tried:
        return max(tried, key=lambda t: t.position(space.axis)).choice
    return space.highest


def plan_file(budget: str) -> str:
    """Name of the file with the plan of a budget: ``plan-ppl+5pct.json``."""
    return f"plan-{budget.replace('%', 'pct')}.json"
