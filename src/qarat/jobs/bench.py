"""The bench: every plan is measured here, once, wherever that runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from qarat.ground.disk import explained
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, Runtime, no_progress
from qarat.jobs.runners.base import Runner
from qarat.model.model import Model, open_model
from qarat.model.prefixes import FloatPrefix
from qarat.model.tokens import TokenSet
from qarat.stages.choose.driver import Failure as NotMeasured
from qarat.stages.choose.driver import SearchWatcher
from qarat.stages.choose.space import Space
from qarat.stages.measure.meter import Failure, Meter, prefix_order
from qarat.stages.quantize import WeightCache, build_block
from qarat.stages.rounding.inputs import Calibration
from qarat.values.budgets import Budget, LossBudget
from qarat.values.plans import Plan
from qarat.values.records.scores import Evaluation
from qarat.values.records.search import SearchTrial
from qarat.values.records.streams import ActivationStats


class Question(NamedTuple):
    """What a worker is asked: the loss of a plan.

    Attributes:
        plan: For the model of the `MeterSpec`.
        label: Of the evaluation.
    """

    plan: Plan
    label: str


class Measured(NamedTuple):
    """What a worker answers.

    Attributes:
        outcome: The losses, or why there are none.
        forwards: Block × token forwards spent: an equal share of what the plans measured together cost.
    """

    outcome: Evaluation | Failure
    forwards: int


Measuring = Callable[[Sequence[Question]], list[Measured]]


@dataclass(frozen=True, eq=False)
class MeterSpec:
    """From what a worker makes its meter; calling it does so (a ``make`` for `qarat.jobs.runners.base.Runner.map`).

    Attributes:
        model: A folder, a reference model's name or a hub id, to be found on the worker's machine.
        revision: Of the hub id.
        fingerprint: What the model opened there has to have.
        runtime: Of one machine.
        tokens: The selection set.
        stats: Behind static scales; None where no plan has any.
        keep_bytes: Bound on the hidden states held on one machine; None is a quarter of the runtime's memory.
        share: Workers of one machine, each of which takes its part of the memory and of the threads.
        opened: The model where it is open already; never pickled, other processes open their own.
    """

    model: str
    revision: str | None
    fingerprint: str
    runtime: Runtime
    tokens: TokenSet
    stats: ActivationStats | None
    keep_bytes: int | None
    share: int
    opened: Model | None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": None}

    def __call__(self) -> Measuring:
        """Open the model, unless it is open.

        Raises:
            UserError: No such model here, or another one by that name.
        """
        keep_bytes = None if self.keep_bytes is None else self.keep_bytes // self.share
        return measure_with(make_meter(self.opened or self._open(), self.tokens, self.stats, keep_bytes=keep_bytes))

    def _open(self) -> Model:
        memory = max(1, self.runtime.memory_bytes() // self.share)
        threads = max(1, (self.runtime.threads or _threads_here()) // self.share)
        runtime = msgspec.structs.replace(self.runtime, memory=memory, threads=threads)
        model = open_model(self.model, runtime, revision=self.revision)
        if model.fingerprint != self.fingerprint:
            raise UserError(
                f"{self.model} on {platform.node()} is another model ({model.fingerprint[:12]}…) than the one searched "
                f"({self.fingerprint[:12]}…); put the same files there"
            )
        return model


def _threads_here() -> int:
    """Threads that torch would take in this process alone: as the environment says (Ray does), or one a processor."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() else os.cpu_count() or 1


def specify(
    model: Model,
    name: str,
    tokens: TokenSet,
    stats: ActivationStats | None,
    *,
    revision: str | None = None,
    keep_bytes: int | None = None,
    share: int = 1,
) -> MeterSpec:
    """What workers need to measure plans of a model that is open here.

    Args:
        model: In float.
        name: That it was opened by; of a local folder its full path is sent.
        tokens: The selection set.
        stats: Behind static scales; None where no plan has any.
        revision: Of the hub id.
        keep_bytes: Bound on the hidden states held on one machine; default a quarter of the runtime's memory.
        share: Workers of one machine, `qarat.jobs.runners.base.Runner.share`.
    """
    model.require_float("measure plans of")
    folder = Path(name)
    place = str(folder.absolute()) if folder.is_dir() else name
    return MeterSpec(place, revision, model.fingerprint, model.runtime, tokens, stats, keep_bytes, share, model)


def measure_with(meter: Meter) -> Measuring:
    """A meter as what a worker does.

    Args:
        meter: Of `make_meter`.
    """

    def measure(questions: Sequence[Question]) -> list[Measured]:
        before = meter.forwards
        plans, labels = zip(*questions, strict=True)
        outcomes = meter.measure_many(plans, labels)
        each, rest = divmod(meter.forwards - before, len(outcomes))
        return [Measured(outcome, each + (number < rest)) for number, outcome in enumerate(outcomes)]

    return measure


def make_meter(
    model: Model,
    tokens: TokenSet,
    stats: ActivationStats | None,
    *,
    prefix: FloatPrefix | None = None,
    calibration: TokenSet | None = None,
    keep_bytes: int | None = None,
) -> Meter:
    """What measures plans of a model.

    Weights rounded once are kept as far as the runtime's bound on weights has room beside the float ones.

    Args:
        model: In float.
        tokens: The selection set.
        stats: Behind static scales; None where no plan has any.
        prefix: Of all the plans that will be measured.
        calibration: Tokens behind roundings that look at what a projection reads.
        keep_bytes: Bound on hidden states held, as of `qarat.stages.measure.meter.Meter`.
    """
    kept = model.block_bytes() * (model.blocks if model.keeps_blocks else 1)
    cache = WeightCache(model.runtime.memory_bytes() - kept)
    first = 0 if prefix is None else len(prefix.tokens)
    inputs = None if calibration is None else Calibration(model, calibration, first)
    return Meter(
        model,
        tokens,
        lambda index, schemes: build_block(model, index, schemes, stats, cache, prefix, inputs),
        keep_bytes=keep_bytes,
    )


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

    def __call__(self, plans: Sequence[Plan], answer: Callable[[int, Evaluation | NotMeasured], None]) -> None:
        """Measure plans; answers come as they are ready, with the plan's index."""
        order = prefix_order(plans)
        questions = [Question(plans[i], plans[i].note) for i in order]
        for i, measured in self._runner.map(self._spec, questions):
            self._count(measured.forwards)
            found = measured.outcome
            answer(order[i], NotMeasured(found.error) if isinstance(found, Failure) else found)

    def _count(self, forwards: int) -> None:
        self.forwards += forwards
        if self._tally is not None:
            with explained(self._tally), self._tally.open("a") as file:
                file.write(f"{forwards}\n")


class ProgressWatcher(SearchWatcher):
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


class Member(NamedTuple):
    """A model to be searched.

    Attributes:
        name: That it was opened by, for workers that open it anew.
        model: In float.
        tokens: Calibration, selection and report.
    """

    name: str
    model: Model
    tokens: tuple[TokenSet, TokenSet, TokenSet]


class Bench(NamedTuple):
    """How plans are measured, whatever is searched.

    Attributes:
        runner: Where.
        seed: Of draws and labels.
        progress: Told of every stage.
        revision: Of hub ids.
        keep_bytes: Bound on hidden states kept between measurements.
    """

    runner: Runner
    seed: int = 0
    progress: Progress = no_progress
    revision: str | None = None
    keep_bytes: int | None = None

    def within(self, place: str) -> Bench:
        """The same, with progress that says where in a larger run it is."""
        return self._replace(progress=lambda stage, done, total: self.progress(f"{place} {stage}", done, total))
