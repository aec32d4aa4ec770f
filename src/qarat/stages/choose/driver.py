"""The driver: runs a strategy, measures what it proposes, and says what each budget reaches."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qarat.ground.runtime import Progress
from qarat.stages.choose.space import Space
from qarat.stages.choose.strategies.base import Goal, Proposal, Strategy
from qarat.stages.choose.trials import PlanMeter
from qarat.values.budgets import Budget, LossBudget
from qarat.values.records.origin import Difference
from qarat.values.records.scores import Evaluation, Failure, paired_difference
from qarat.values.records.search import NOTHING, SearchTrial


class SearchWatcher:
    """Told how a search goes; this one does nothing."""

    def tried(self, trial: SearchTrial) -> None:
        """A proposal has its answer."""

    def measured(self, done: int, wanted: int) -> None:
        """So many plans were measured, of those wanted so far."""


class ProgressWatcher(SearchWatcher):
    """Turns trials into progress: how many, and the best so far for the first loss budget."""

    def __init__(self, progress: Progress, budgets: Sequence[Budget], space: Space) -> None:
        """Begin.

        Args:
            progress: Told.
            budgets: Of the search.
            space: Of its choices.
        """
        self._progress, self._space = progress, space
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
            return self._progress("search", done, wanted)
        place = f"Q_r {self._best.ratio:.3f}" if self._space.axis == "ratio" else f"{self._best.bits:.2f} bits"
        self._progress(f"search: {place} within {self._budget.spelling}", done, wanted)


class Driver:
    """Measures choices, and compares them with float.

    Attributes:
        float_plan: Every site in float.
        float_loss: Its loss on the selection tokens.
        trials: So far, in the order in which they were proposed.
    """

    def __init__(self, space: Space, meter: PlanMeter, watcher: SearchWatcher | None = None) -> None:
        """Measure the float model.

        Args:
            space: Of the choices.
            meter: Losses of plans on the selection tokens.
            watcher: Told of every trial.

        Raises:
            UserError: If float itself cannot be measured.
        """
        self.trials: list[SearchTrial] = []
        self._space, self._meter, self._watcher = space, meter, watcher or SearchWatcher()
        everything = {a.site.name: type(a.scheme)() for a in space.base.assignments}
        self.float_plan = space.base.with_schemes(everything, "float")
        self._watcher.measured(0, 1)
        self.float_loss = meter.loss(msgspec.structs.replace(self.float_plan, note="float"), self._tell)

    def run(self, strategy: Strategy, goal: Goal) -> None:
        """Let a strategy ask until it knows enough; its trials are added to `trials`."""
        asking = strategy.propose(self._space, goal)
        try:
            batch = next(asking)
            while True:
                batch = asking.send(self._answer(batch))
        except StopIteration:
            return

    def _answer(self, batch: Sequence[Proposal]) -> list[Difference | None]:
        outcomes = self._meter.losses([self._space.plan(p.choice, p.label) for p in batch], self._tell)
        trials = [self._trial(outcome, proposal) for outcome, proposal in zip(outcomes, batch, strict=True)]
        for trial in trials:
            self.trials.append(trial)
            self._watcher.tried(trial)
        return [None if trial.failure else trial.damage for trial in trials]

    def _tell(self) -> None:
        self._watcher.measured(self._meter.done, self._meter.wanted)

    def _trial(self, outcome: Evaluation | Failure, proposal: Proposal) -> SearchTrial:
        if isinstance(outcome, Failure):
            damage, failure = NOTHING, outcome.error
        else:
            damage, failure = paired_difference(outcome, self.float_loss), ""
        choice = proposal.choice
        place = (self._space.ratio(choice), self._space.bits(choice), proposal.predicted)
        return SearchTrial(proposal.label, choice, *place, damage, failure)
