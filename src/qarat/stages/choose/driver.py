"""The driver: runs a strategy, measures what it proposes, and says what each budget reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qarat.ground.runtime import Progress, no_progress
from qarat.stages.choose.space import Space
from qarat.stages.choose.strategies.base import Goal, Proposal, Strategy
from qarat.stages.choose.trials import PlanMeter
from qarat.values.budgets import Budget, LossBudget
from qarat.values.records.origin import Difference
from qarat.values.records.scores import Evaluation, Failure, paired_difference
from qarat.values.records.search import NOTHING, Choice, SearchTrial

STAGE = "search"  # what progress is told


class Driver:
    """Measures choices, and compares them with float.

    Attributes:
        float_plan: Every site in float.
        float_loss: Its loss on the selection tokens.
        trials: So far, in the order in which they were proposed.
    """

    def __init__(
        self, space: Space, meter: PlanMeter, budgets: Sequence[Budget] = (), progress: Progress = no_progress
    ) -> None:
        """Measure the float model.

        Args:
            space: Of the choices.
            meter: Losses of plans on the selection tokens.
            budgets: Of the search; progress says what the first one of loss has come to.
            progress: Told after every plan that was measured.

        Raises:
            UserError: If float itself cannot be measured.
        """
        self.trials: list[SearchTrial] = []
        self._space, self._meter, self._progress = space, meter, progress
        self._budget = next((b for b in budgets if isinstance(b, LossBudget)), None)
        self.float_plan = space.base.in_float()
        progress(STAGE, 0, 1)
        self.float_loss = meter.loss(self.float_plan, self._tell)

    def measure_uniform(self, goal: Goal) -> None:
        """Measure every option everywhere, so that what is chosen is never worse than one scheme in as many bytes.

        Args:
            goal: Whose predictions are noted beside what is measured.
        """

        def predicted(choice: Choice) -> float:
            known = goal.predictions
            return math.nan if known is None else float(known[np.arange(len(choice)), list(choice)].sum())

        self._answer(
            [
                Proposal(choice, label, predicted(choice))
                for label, choice in self._space.uniform().items()
                if not (self._space.loses_nothing and choice == self._space.highest)
            ]
        )

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
        self.trials += trials
        return [None if trial.failure else trial.damage for trial in trials]

    def _tell(self) -> None:
        """How many plans were measured, and the cheapest so far that keeps the loss budget."""
        stage, budget, axis = STAGE, self._budget, self._space.axis
        kept = [t for t in self.trials if budget and not t.failure and t.damage.nats <= budget.nats]
        if budget and kept:
            best = max(kept, key=lambda trial: trial.position(axis))
            words = {"ratio": f"Q_r {best.ratio:.3f}", "bits": f"{best.bits:.2f} bits"}
            place = words.get(axis, f"{best.megabytes:.3f} MB")
            stage = f"{STAGE}: {place} within {budget.spelling}"
        self._progress(stage, self._meter.done, self._meter.wanted)

    def _trial(self, outcome: Evaluation | Failure, proposal: Proposal) -> SearchTrial:
        if isinstance(outcome, Failure):
            damage, failure = NOTHING, outcome.error
        else:
            damage, failure = paired_difference(outcome, self.float_loss), ""
        choice = proposal.choice
        place = (self._space.ratio(choice), self._space.bits(choice), proposal.predicted)
        return SearchTrial(proposal.label, choice, *place, damage, failure, self._space.megabytes(choice))
