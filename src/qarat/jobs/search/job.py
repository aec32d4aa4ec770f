"""The job of a search: steps in a folder, from profile to plans."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import msgspec

from qarat.ground.disk import hash_json, write_whole
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.bench import Bench, Member
from qarat.jobs.checks import check_search_request, metric_of
from qarat.jobs.folder import DAMAGE, PROFILE, Run, result_of
from qarat.jobs.protecting import draft_plan
from qarat.jobs.rewriting import with_rewrites
from qarat.jobs.runners import open_runner
from qarat.jobs.search.budgets import Scores, check_tasks, choice_of, correction_of, plan_file, reach_accuracy
from qarat.jobs.transforming import apply_again, outline, prepare_in
from qarat.model.model import Model
from qarat.model.token_sets import check_disjoint
from qarat.model.tokens import TokenSet
from qarat.stages.choose.driver import Driver
from qarat.stages.choose.outcomes import points_of, reach
from qarat.stages.choose.space import Space, make_space
from qarat.stages.choose.strategies import STRATEGIES
from qarat.stages.choose.strategies.base import Goal
from qarat.stages.choose.trials import TrialLog
from qarat.stages.measure.tasks.zero_shot import measure_tasks
from qarat.stages.observe import observe
from qarat.stages.prices import METRICS
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import check_stats, quantize
from qarat.stages.rounding import check_roundings, needs_calibration
from qarat.values.budgets import AccuracyBudget, Budget, LossBudget, parse_budget
from qarat.values.fingerprints import spellings_of
from qarat.values.plans import Plan, match_sites
from qarat.values.records.files import content_hash, decode_record, encode_record
from qarat.values.records.prices import Menu
from qarat.values.records.scores import Evaluation, Failure, ZeroShot
from qarat.values.records.search import NO_CORRECTION, Reached, SearchCost, SearchResult, pareto
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ENGINES_THAT_FUSE
from qarat.values.requests.search import SearchRequest
from qarat.values.schemes import Scheme, is_static

KIND = "search"
TRIALS, RESULT = "trials.jsonl", result_of(KIND)
TALLY = "forwards-{}.txt"
SCORES, REPORTED = "scores", "report-{}.jsonl"


class SearchJob:
    """One search: a model, what is to be found out, and how."""

    def __init__(self, member: Member, request: SearchRequest, setting: Bench) -> None:
        """Check the request against the model; nothing long is done.

        Args:
            member: Model and tokens.
            request: Checked already.
            setting: How plans are measured.

        Raises:
            UserError: A pattern that matches nothing, ties broken, nothing left to decide, a budget of another axis, a
                task that cannot be measured, tokens with a text in common, an extra that is not installed; a model
                changed by transforms, with workers.
        """
        member.model.require_float("search")
        if setting.elsewhere and (done := spellings_of(member.model.fingerprint)):
            raise UserError(
                f"the model was changed here by {', '.join(done)}, and workers would open it as it was: search in this "
                "process alone (workers=1)"
            )
        check_disjoint(*member.tokens)
        self.member, self.setting, self.progress = member, setting, setting.progress
        self.planning, self.rewrite_note = with_rewrites(member.model, request.as_plan_request())
        self.request = msgspec.structs.replace(request, low=self.planning.low, metric=metric_of(request))
        self.calibration, self.selection, self.report = member.tokens
        self.strategy = STRATEGIES.load(request.strategy)
        # Until it is rewritten, one of the shapes that it will have.
        self._search_on(outline(member.model, self.planning))
        by_rules = ((a.site, a.scheme) for a in self.space.base.assignments)
        pairs = chain(product(self.model.sites(), self.priced_schemes), by_rules)
        check_roundings(((s, scheme) for s, scheme in pairs if scheme.fits(s.kind)), member.calibration.rows)
        check_tasks(request.parsed_budgets())

    @property
    def _every(self) -> tuple[Scheme, ...]:
        """Whatever a site may have."""
        return (*chain(*self.space.options), *self.space.base.schemes.values())

    @property
    def static(self) -> bool:
        """Whether any scale comes from stats, so that the model has to be profiled."""
        return any(map(is_static, self._every))

    @property
    def rounds(self) -> bool:
        """Whether any rounding looks at the calibration tokens."""
        return needs_calibration(self._every)

    @property
    def key(self) -> dict[str, object]:
        """Everything that decides the result's bytes."""
        return {
            "model": self.model.fingerprint,
            "versions": self.model.provenance("", "").versions,
            "dtype": self.model.runtime.dtype,
            "calibration": self.calibration.fingerprint if self.static or self.rounds else "",
            "selection": self.selection.fingerprint,
            "seed": self.setting.seed,
            "request": msgspec.to_builtins(self.request),
            "report": self.report.fingerprint,
        }

    def execute(self, run: Run) -> SearchResult:
        """Do every step that is not done yet, and put the folder into place."""
        self._rewrite(run)
        whole = self.key
        key = {name: whole[name] for name in ("model", "versions", "dtype", "calibration")}
        stats = None
        if self.static:
            stats = PROFILE.make(run, key, lambda: observe(self.model, self.calibration, progress=self.progress))
        before = [PROFILE] if self.static else []
        key |= {name: whole[name] for name in ("selection", "seed")}
        priced = msgspec.structs.asdict(self.request)
        priced = {name: priced[name] for name in ("low", "high", "menu", "basis", "metric", "price_windows")}
        predicts = bool(self.strategy.METRIC)
        menu = DAMAGE.make(run, [key, priced], lambda: self._price(stats), before) if predicts else None
        before += [DAMAGE] if predicts else []
        plans = [plan_file(budget) for budget in self.request.budgets]
        after = [step.name for step in before]
        run.step("search", whole, [RESULT, *plans], lambda: self._search(run, stats, menu), after)
        result = decode_record(run.path(RESULT), SearchResult)
        run.finish()
        return result

    def _search_on(self, model: Model) -> None:
        """Take a model as the one to be searched."""
        self.model = model
        base = draft_plan(model, self.planning)
        of_one = model.length if self.request.caches() else 0
        self.context = self.request.context or of_one
        self.space = self._space(base)
        self.points = points_of(self.request, self.space, draws=self.strategy.DRAWS)

    def _rewrite(self, run: Run) -> None:
        """Take the rewritten model in the place of the one asked for, if it is to be rewritten."""
        if not self.planning.transforms:
            return
        more: dict[str, Any] = {"stats": None, "seed": self.setting.seed, "progress": self.progress}
        done = prepare_in(run, self.member.model, self.planning, self.calibration, self.selection, **more)
        again = functools.partial(apply_again, transforms=done.transforms, made_from=done.made_from)
        self._search_on(done.model)
        self.member = dataclasses.replace(self.member, model=done.model, remake=again)

    def _space(self, base: Plan) -> Space:
        request = self.request
        matched = [match_sites(pattern, base.sites) for pattern, _ in self.planning.overrides()]
        return make_space(
            base,
            request.ordered_options(base),
            pinned={site.name for sites in matched for site in sites},
            layers=request.granularity == "layer",
            tied=request.runtime in ENGINES_THAT_FUSE,
            basis=request.basis,
            length=self.selection.windows.shape[1],
            axis=request.axis,
            context=self.context,
        )

    def _price(self, stats: ActivationStats | None) -> Menu:
        more: dict[str, Any] = {"seed": self.setting.seed, "progress": self.progress}
        more |= {"metric": self.request.metric, "calibration": self.member.calibration}
        return price(self.model, self.price_tokens, self.priced_schemes, stats, **more)

    @property
    def priced_schemes(self) -> list[Scheme]:
        """Every scheme of the options, float left out, each once."""
        schemes = dict.fromkeys(chain(*self.space.options))
        return [scheme for scheme in schemes if not scheme.is_float]

    def _search(self, run: Run, stats: ActivationStats | None, menu: Menu | None) -> None:
        base = draft_plan(self.model, self.planning, content_hash(stats) if stats else "")
        read = self.calibration.fingerprint if self.rounds else ""
        space = self._space(msgspec.structs.replace(base, calibration=read))
        for option in range(len(space.options)):
            check_stats(space.plan((option,) * len(space.units), ""), stats)
        # Of this request: another one in the same folder takes the log over, and not what the first one spent.
        digest = hash_json(msgspec.to_builtins(self.request))[:8]
        measurer = self.setting.measurer(self.member, self.selection, stats, run.path(TALLY.format(digest)))
        log = TrialLog(run.path(TRIALS), self._log_header(space, self.selection))
        driver = Driver(space, measurer.meter(log), self.request.parsed_budgets(), self.progress)
        goal = self._goal(space, menu)
        if space.axis != "ratio":
            driver.measure_uniform(goal)
        driver.run(self.strategy, goal)
        reached = [self._reach(budget, stats, space, driver, run) for budget in self.request.parsed_budgets()]
        float_report, reached = self._on_report(run, stats, space, driver, reached)
        result = SearchResult(
            driver.float_loss.provenance,
            self.request.strategy,
            self.request.metric if menu is not None else "",
            self.request.granularity,
            self.request.basis,
            space.axis,
            tuple(str(option.projection) for option in space.options),
            tuple(unit.label for unit in space.units),
            content_hash(space.base),
            driver.float_loss,
            float_report,
            tuple(driver.trials),
            tuple(reached),
            SearchCost(self._pricing_cost(), measurer.forwards),
            correction_of(driver.trials) if menu is not None and menu.in_nats else NO_CORRECTION,
            tuple(str(option.cache) for option in space.options) if self.request.caches() else (),
            self.context,
        )
        write_whole(run.path(RESULT), encode_record(result))
        for budget, outcome in zip(self.request.budgets, reached, strict=True):
            plan = space.plan(choice_of(parse_budget(budget), outcome, driver.trials, space), budget)
            write_whole(run.path(plan_file(budget)), encode_record(msgspec.structs.replace(plan, note=outcome.verdict)))

    def _reach(self, budget: Budget, stats: ActivationStats | None, space: Space, driver: Driver, run: Run) -> Reached:
        if not isinstance(budget, AccuracyBudget):
            return reach(budget, driver.trials, space, driver.float_loss)

        def measure(task: str, plan: Plan, label: str) -> ZeroShot:
            model = self.model if plan == driver.float_plan else quantize(self.model, plan, stats, self.calibration)
            return measure_tasks(model, [task], label=label, progress=self.progress)

        version = importlib.metadata.version("lm_eval")
        scores = Scores(run.path(SCORES), measure, [version, self._log_header(space, self.selection)["provenance"]])
        curve = [(driver.trials.index(trial), trial) for trial in pareto(driver.trials, space.axis)]
        return reach_accuracy(
            budget,
            curve,
            scores(budget.task, driver.float_plan, "float"),
            lambda trial: scores(budget.task, space.plan(trial.choice, budget.spelling), trial.label),
        )

    def _goal(self, space: Space, menu: Menu | None) -> Goal:
        losses = tuple(b.nats for b in self.request.parsed_budgets() if isinstance(b, LossBudget))
        predicted = (None, None) if menu is None else (space.predictions(menu), space.prediction_errors(menu))
        return Goal(self.points, losses, *predicted, self.request.trials, self.setting.seed)

    def _on_report(
        self, run: Run, stats: ActivationStats | None, space: Space, driver: Driver, reached: Sequence[Reached]
    ) -> tuple[Evaluation, list[Reached]]:
        """What float and the chosen plans lose on the report tokens, which no choice has seen."""
        log = TrialLog(run.path(REPORTED.format(self.report.fingerprint[:8])), self._log_header(space, self.report))
        meter = self.setting.measurer(self.member, self.report, stats).meter(log)

        def tell() -> None:
            self.progress("report", meter.done, meter.wanted)

        self.progress("report", 0, 1)
        float_loss = meter.loss(driver.float_plan, tell)
        choices = list(dict.fromkeys(driver.trials[r.trial].choice for r in reached if r.trial >= 0))
        outcomes = meter.losses([space.plan(choice, "chosen") for choice in choices], tell)
        losses = dict(zip(choices, outcomes, strict=True))

        def measured(budget: Reached) -> Reached:
            outcome = losses[driver.trials[budget.trial].choice]
            if isinstance(outcome, Failure):
                verdict = f"{budget.verdict}; on the report tokens it cannot be measured"
                return msgspec.structs.replace(budget, verdict=verdict)
            return msgspec.structs.replace(budget, report=outcome.nats)

        return float_loss, [measured(r) if r.trial >= 0 else r for r in reached]

    def _log_header(self, space: Space, tokens: TokenSet) -> dict[str, object]:
        provenance = self.model.provenance(tokens.fingerprint, tokens.convention)
        return {"provenance": msgspec.to_builtins(provenance), "base": content_hash(space.base)}

    def _pricing_cost(self) -> int:
        if not self.strategy.METRIC:
            return 0
        count = METRICS.load(self.request.metric).block_forwards(self.model, self.price_tokens, self.priced_schemes)
        return count * self.price_tokens.windows.numel()

    @property
    def price_tokens(self) -> TokenSet:
        """The selection windows that prices come from."""
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
        workers: Processes that measure plans; 1 is this one. More import the script that calls, which must do so below
            ``if __name__ == "__main__":``.
        progress: Told of every stage.

    Raises:
        UserError: What is wrong with the request, for this model or at all; ``out`` is there.
    """
    check_search_request(request)
    run = Run(out, KIND)
    with open_runner(workers) as runner:
        job = SearchJob(Member(str(model.path), model, tokens), request, Bench(runner, seed, progress))
        with run.work(TRIALS):
            return job.execute(run)
