"""What a search makes of its trials: a plan for each budget, also of accuracy, and what predictions come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from qarat.ground.disk import hash_json, write_whole
from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.stages.choose.space import Space
from qarat.stages.measure.tasks.harness import import_harness
from qarat.stages.measure.tasks.zero_shot import OWN_TASKS
from qarat.stages.prices.checking import FEWEST, fit_correction
from qarat.values.budgets import AccuracyBudget, Budget, CostBudget
from qarat.values.plans import Plan
from qarat.values.records.comparison import score_difference
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.origin import spell_bounds
from qarat.values.records.prices import Correction
from qarat.values.records.scores import TaskScore, ZeroShot
from qarat.values.records.search import NO_CORRECTION, Choice, Reached, SearchTrial


def correction_of(trials: Sequence[SearchTrial]) -> Correction:
    """What predictions come to; losses lost in noise cannot be fitted."""
    pairs = [(t.predicted, t.damage.nats) for t in trials if t.predicted > 0 and t.damage.nats > 0]
    try:
        return fit_correction(pairs) if len(pairs) >= FEWEST else NO_CORRECTION
    except UserError:  # losses fall where predictions rise: there is nothing that a correction could put right
        return NO_CORRECTION


def choice_of(budget: Budget, reached: Reached, trials: Sequence[SearchTrial], space: Space) -> Choice:
    """What is written for a budget: its plan; where nothing meets it the nearest there is, so that no file is missing.

    Nearest is the highest plan for a loss, and the cheapest that was tried for a cost.
    """
    if reached.trial >= 0:
        return trials[reached.trial].choice
    tried = [t for t in trials if not t.failure]
    if isinstance(budget, CostBudget) and tried:
        return max(tried, key=lambda t: t.position(space.axis)).choice
    return space.highest


def plan_file(budget: str) -> str:
    """Name of the file with the plan of a budget: ``plan-ppl+5pct.json``."""
    return f"plan-{budget.replace('%', 'pct')}.json"


def check_tasks(budgets: Sequence[Budget]) -> None:
    """Check, before any work, that the tasks of budgets can be measured, on questions that no report is about.

    Raises:
        UserError: The harness is missing; tasks that it does not have; tasks whose questions are the report text, or
            need a folder.
    """
    wanted = [budget for budget in budgets if isinstance(budget, AccuracyBudget)]
    if not wanted:
        return
    problems = [
        f"`budgets` {b.spelling}: {b.task} cannot choose plans, as its questions are the report text or lie in a "
        "folder; take a task of the lm-evaluation-harness"
        for b in wanted
        if b.task in OWN_TASKS or b.task.endswith("_local")
    ]
    if not problems:
        known: list[str] = import_harness("lm_eval.tasks").TaskManager().all_tasks
        problems = [
            f"`budgets` {b.spelling}: the lm-evaluation-harness has no task {b.task!r}; {nearest_names(b.task, known)}"
            for b in wanted
            if b.task not in known
        ]
    if problems:
        raise UserError("\n".join(problems))


class Scores:
    """Scores of plans on tasks: each is measured once, and what an earlier call measured is read."""

    def __init__(self, folder: Path, measure: Callable[[str, Plan, str], ZeroShot], belongs_to: object) -> None:
        """Nothing is measured yet.

        Args:
            folder: One file a score.
            measure: Scores a plan on a task, under a label.
            belongs_to: Everything else that decides a score: model, versions.
        """
        self._folder, self._measure, self._belongs_to = folder, measure, belongs_to

    def __call__(self, task: str, plan: Plan, label: str) -> ZeroShot:
        """Score a plan on a task."""
        schemes = [str(scheme) for scheme in plan.schemes.values()]
        path = self._folder / f"{hash_json([self._belongs_to, task, plan.stats, schemes])}.json"
        if not path.is_file():
            write_whole(path, encode_record(self._measure(task, plan, label)))
        return decode_record(path, ZeroShot)


def reach_accuracy(
    budget: AccuracyBudget,
    curve: Sequence[tuple[int, SearchTrial]],
    float_score: ZeroShot,
    score: Callable[[SearchTrial], ZeroShot],
) -> Reached:
    """The cheapest plan of a curve whose accuracy keeps a budget, by bisection: accuracy is taken to fall with cost.

    Args:
        budget: The task, and how far accuracy may fall.
        curve: Trials with their indices, the cheapest last.
        float_score: Of the float model.
        score: Measures a trial's plan on the task.

    Raises:
        UserError: If the task has no accuracy.
    """
    base = _accuracy(float_score, budget.task)
    within, beyond = -1, len(curve)
    scores: dict[int, TaskScore] = {}
    while beyond - within > 1:
        middle = (within + beyond) // 2
        scores[middle] = _accuracy(score(curve[middle][1]), budget.task)
        if base.value - scores[middle].value <= budget.drop:
            within = middle
        else:
            beyond = middle
    if within < 0:
        best = max((x.value for x in scores.values()), default=math.nan)
        verdict = f"no plan that was tried keeps it: float {base.value:.3f}, the best of {len(scores)} has {best:.3f}"
        return Reached(budget.spelling, -1, math.nan, math.nan, verdict)
    chosen, trial = scores[within], curve[within][1]
    drop, error = score_difference(base, chosen)
    fall = f"it falls by {drop:.3f}{spell_bounds(drop, error, 3)}"
    verdict = f"{trial.label}: accuracy {chosen.value:.3f}, float {base.value:.3f}; {fall}"
    return Reached(budget.spelling, curve[within][0], math.nan, math.nan, verdict)


def _accuracy(record: ZeroShot, task: str) -> TaskScore:
    for score in record.scores:
        if score.task == task and score.metric == "acc":
            return score
    raise UserError(f"the task {task} has no metric acc, which a budget of accuracy is about")
