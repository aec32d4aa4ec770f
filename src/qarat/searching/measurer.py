"""What a search's driver measures with, and tells how it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qarat.budgets import Budget, LossBudget
from qarat.evaluation.incremental import Failure as Unmeasured
from qarat.evaluation.incremental import prefix_order
from qarat.measuring import MeterSpec, Question
from qarat.plans import Plan
from qarat.records import Evaluation
from qarat.runners import Runner
from qarat.search.driver import Failure, Watcher
from qarat.search.space import Space
from qarat.searches import SearchTrial
from qarat.workspace import Progress, explained

__all__ = ["Measurer", "ProgressWatcher"]


class Measurer:
    """Measures plans where a runner says, and counts what that costs.

    Attributes:
        forwards: Block × token forwards spent so far, by all workers and all calls that share the tally.
    """

    def __init__(self, runner: Runner, spec: MeterSpec, tally: Path | None = None) -> None:
        """Nothing is opened yet.

        Args:
            runner: Whose workers measure.
            spec: What each of them measures with.
            tally: File to which every measurement's forwards are added, so that a search that was killed does not
                forget what it spent.
        """
        self._tally = tally
        self.forwards = sum(map(int, tally.read_text().split())) if tally is not None and tally.is_file() else 0
        self._runner, self._spec = runner, spec

    def __call__(self, plans: Sequence[Plan], answer: Callable[[int, Evaluation | Failure], None]) -> None:
        """Measure plans; answers come as they are ready, with the plan's index."""
        order = prefix_order(plans)
        questions = [Question(plans[i], plans[i].note) for i in order]
        for i, measured in self._runner.map(self._spec, questions):
            self._count(measured.forwards)
            found = measured.outcome
            answer(order[i], Failure(found.error) if isinstance(found, Unmeasured) else found)

    def _count(self, forwards: int) -> None:
        self.forwards += forwards
        if self._tally is not None:
            with explained(self._tally), self._tally.open("a") as file:
                file.write(f"{forwards}\n")


class ProgressWatcher(Watcher):
    """Turns trials into progress: how many, and the best so far for the first loss budget."""

    def __init__(self, progress: Progress, budgets: Sequence[Budget], space: Space, stage: str = "search") -> None:
        """Begin.

        Args:
            progress: Told.
            budgets: Of the search.
            space: Of its choices.
            stage: What progress is told.
        """
        self._progress, self._space, self._stage = progress, space, stage
        self._budget = next((b for b in budgets if isinstance(b, LossBudget)), None)
        self._best: SearchTrial | None = None

    def tried(self, trial: SearchTrial) -> None:
        """Keep it if it is the cheapest within the budget."""
        axis = self._space.axis
        better = self._best is None or trial.position(axis) > self._best.position(axis)
        if self._budget and not trial.failure and trial.damage.nats <= self._budget.nats and better:
            self._best = trial

    def measured(self, done: int, wanted: int) -> None:
        """Say how far it is."""
        if self._best is None or self._budget is None:
            return self._progress(self._stage, done, wanted)
        place = f"Q_r {self._best.ratio:.3f}" if self._space.axis == "ratio" else f"{self._best.bits:.2f} bits"
        self._progress(f"{self._stage}: {place} within {self._budget.spelling}", done, wanted)
