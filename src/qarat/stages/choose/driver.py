"""The driver: runs a strategy, measures what it proposes, and says what each budget reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from qarat.ground.disk import hash_json
from qarat.ground.errors import UserError
from qarat.stages.choose.space import Space
from qarat.stages.choose.strategies.base import Goal, Proposal, Strategy
from qarat.stages.choose.trials import Answer, TrialLog
from qarat.values.plans import Plan
from qarat.values.records.origin import Difference
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.records.search import NOTHING, Choice, SearchTrial


class Failure(msgspec.Struct, frozen=True):
    """A plan that could not be measured, and why."""

    words: str


MeasureMany = Callable[[Sequence[Plan], Callable[[int, Evaluation | Failure], None]], None]
"""Measures plans and hands over each answer as it comes, with the plan's index."""


class SearchWatcher:
    """Told how a search goes; this one does nothing."""

    def tried(self, trial: SearchTrial) -> None:
        """A proposal has its answer."""

    def measured(self, done: int, wanted: int) -> None:
        """So many plans were measured, of those wanted so far."""


class Driver:
    """Measures choices, each once, and compares them with float.

    Attributes:
        float_plan: Every site in float.
        float_loss: Its loss on the selection tokens.
        trials: So far, in the order in which they were proposed.
    """

    def __init__(self, space: Space, measure: MeasureMany, log: TrialLog, watcher: SearchWatcher | None = None) -> None:
        """Measure the float model.

        Args:
            space: Of the choices.
            measure: Losses of plans on the selection tokens.
            log: Of answers, those of an earlier call among them.
            watcher: Told of every trial.

        Raises:
            UserError: If float itself cannot be measured.
        """
        self.trials: list[SearchTrial] = []
        self._space, self._measure, self._log = space, measure, log
        self._watcher, self._done, self._wanted = watcher or SearchWatcher(), 0, 1
        everything = {a.site.name: type(a.scheme)() for a in space.base.assignments}
        self.float_plan = space.base.with_schemes(everything, "float")
        self.float_loss = self._measure_float(self.float_plan)

    def run(self, strategy: Strategy, goal: Goal) -> None:
        """Let a strategy ask until it knows enough; its trials are added to `trials`."""
        asking = strategy.propose(self._space, goal)
        try:
            batch = next(asking)
            while True:
                batch = asking.send(self._answer(batch))
        except StopIteration:
            return

    def losses(self, choices: Sequence[Choice]) -> list[tuple[float, ...]]:
        """Loss of each choice, nats of every window; empty where it cannot be measured. No trials come of it."""
        plans = [self._space.plan(choice, "chosen") for choice in choices]
        return [answer.nats for answer in self._answers(plans)]

    def _answer(self, batch: Sequence[Proposal]) -> list[Difference | None]:
        done = len(self.trials)
        answers = self._answers([self._space.plan(p.choice, p.label) for p in batch])
        for answer, proposal in zip(answers, batch, strict=True):
            self.trials.append(self._trial(answer, proposal))
            self._watcher.tried(self.trials[-1])
        return [None if trial.failure else trial.damage for trial in self.trials[done:]]

    def _answers(self, plans: Sequence[Plan]) -> list[Answer]:
        keys = [_key(plan) for plan in plans]
        wanted = {key: plan for key, plan in zip(keys, plans, strict=True) if key not in self._log}
        order = list(wanted)
        self._wanted += len(order)
        if order:
            self._measure([wanted[key] for key in order], lambda i, found: self._keep(order[i], found))
        return [self._log[key] for key in keys]

    def _keep(self, key: str, found: Evaluation | Failure) -> None:
        failed = isinstance(found, Failure)
        self._log.add(Answer(key, failure=found.words) if failed else Answer(key, found.nats))
        self._done += 1
        self._watcher.measured(self._done, self._wanted)

    def _trial(self, answer: Answer, proposal: Proposal) -> SearchTrial:
        choice = proposal.choice
        place = (self._space.ratio(choice), self._space.bits(choice), proposal.predicted)
        if answer.failure:
            return SearchTrial(proposal.label, choice, *place, NOTHING, answer.failure)
        evaluation = msgspec.structs.replace(self.float_loss, label=proposal.label, nats=answer.nats)
        return SearchTrial(proposal.label, choice, *place, paired_difference(evaluation, self.float_loss))

    def _measure_float(self, plan: Plan) -> Evaluation:
        found: list[Evaluation | Failure] = []
        self._watcher.measured(0, self._wanted)
        # Measured also where the log has it: its provenance, windows and sources are those of every answer.
        self._measure([plan], lambda _, evaluation: found.append(evaluation))
        if isinstance(found[0], Failure):
            raise UserError(f"the float model cannot be measured: {found[0].words}")
        self._done += 1
        self._watcher.measured(self._done, self._wanted)
        return msgspec.structs.replace(found[0], label="float", plan="")


def _key(plan: Plan) -> str:
    return hash_json([str(scheme) for scheme in plan.schemes.values()])
