"""The bench: every plan is measured here, once, wherever that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from qarat.ground.disk import explained
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.replicas import Remake, Replica
from qarat.jobs.runners.base import Runner, ThisProcess
from qarat.model.model import Model
from qarat.model.prefixes import FloatPrefix
from qarat.model.tokens import TokenSet
from qarat.stages.choose.trials import MeasureMany, PlanMeter, TrialLog
from qarat.stages.measure.meter import Meter, prefix_order
from qarat.stages.quantize import WeightCache, build_block, room_for_weights
from qarat.stages.rounding.inputs import Calibration
from qarat.values.plans import Plan
from qarat.values.records.scores import Evaluation, Failure
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import Scheme


class Measured(NamedTuple):
    """What a worker answers.

    Attributes:
        outcome: The losses, or why there are none.
        forwards: Block × token forwards spent: an equal share of what the plans measured together cost.
    """

    outcome: Evaluation | Failure
    forwards: int


Measuring = Callable[[Sequence[Plan]], list[Measured]]


class MeterSpec:
    """From what a worker makes its meter; calling it does so (a ``make`` for `qarat.jobs.runners.base.Runner.map`).

    Attributes:
        replica: Of the model whose plans are measured, in float.
        tokens: The selection set.
    """

    def __init__(
        self,
        replica: Replica,
        tokens: TokenSet,
        stats: ActivationStats | None,
        *,
        calibration: Calibration | None = None,
        keep_bytes: int | None = None,
    ) -> None:
        """What workers need to measure plans of a model that is open here.

        Args:
            replica: As the attribute.
            tokens: The selection set.
            stats: Behind static scales; None where no plan has any.
            calibration: For roundings that look at what a projection reads; other processes go through its tokens
                themselves.
            keep_bytes: Bound on the hidden states held on one machine; default a quarter of the runtime's memory.
        """
        if replica.model is not None:
            replica.model.require_float("measure plans of")
        self.replica, self.tokens = replica, tokens
        self._stats, self._calibration = stats, calibration
        self._read = None if calibration is None else calibration.tokens
        self._keep_bytes = None if keep_bytes is None else keep_bytes // replica.opening.share

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_calibration": None}

    def __call__(self) -> Measuring:
        """Open the model, unless it is open; errors as of a `Replica`."""
        model, inputs = self.replica(), self._calibration
        if inputs is None and self._read is not None:
            inputs = Calibration(model, self._read)
        return measure_with(
            make_meter(model, self.tokens, self._stats, calibration=inputs, keep_bytes=self._keep_bytes)
        )


def measure_with(meter: Meter) -> Measuring:
    """A meter as what a worker does.

    Args:
        meter: Of `make_meter`.
    """

    def measure(plans: Sequence[Plan]) -> list[Measured]:
        before = meter.forwards
        outcomes = meter.measure_many(plans, [plan.note for plan in plans])
        each, rest = divmod(meter.forwards - before, len(outcomes))
        return [Measured(outcome, each + (number < rest)) for number, outcome in enumerate(outcomes)]

    return measure


def make_meter(
    model: Model,
    tokens: TokenSet,
    stats: ActivationStats | None,
    *,
    prefix: FloatPrefix | None = None,
    calibration: Calibration | None = None,
    keep_bytes: int | None = None,
) -> Meter:
    """What measures plans of a model.

    Weights rounded once are kept as far as the runtime's bound on weights has room beside the float ones.

    Args:
        model: In float.
        tokens: The selection set.
        stats: Behind static scales; None where no plan has any.
        prefix: Of all the plans that will be measured.
        calibration: For roundings that look at what a projection reads.
        keep_bytes: Bound on hidden states held, as of `qarat.stages.measure.meter.Meter`.
    """
    return Meter(model, tokens, block_builder(model, stats, prefix, calibration), keep_bytes=keep_bytes)


def block_builder(
    model: Model, stats: ActivationStats | None, prefix: FloatPrefix | None, calibration: Calibration | None
) -> Callable[[int, Mapping[str, Scheme]], nn.Module]:
    """What a meter builds blocks with; arguments as of `make_meter`."""
    cache = WeightCache(room_for_weights(model))
    return lambda index, schemes: build_block(model, index, schemes, stats, cache, prefix, calibration)


def blank_evaluation(model: Model, tokens: TokenSet) -> Evaluation:
    """The evaluation of the float model on a token set, before its losses are known."""
    origin = model.provenance(tokens.fingerprint, tokens.convention)
    predicted, unit = tokens.words or tokens.predicted, "word" if tokens.words else "token"
    return Evaluation("float", origin, "", (), predicted, tokens.sources, unit)


def plan_meter(
    model: Model,
    tokens: TokenSet,
    stats: ActivationStats | None,
    log: TrialLog,
    *,
    prefix: FloatPrefix | None = None,
    calibration: Calibration | None = None,
    measure: MeasureMany | None = None,
) -> PlanMeter:
    """Losses of plans, each measured once.

    Args:
        model: As of `make_meter`, as the others.
        tokens: The selection set.
        stats: Behind static scales.
        log: As of `PlanMeter`.
        prefix: Of all the plans.
        calibration: As the others.
        measure: Does it elsewhere; None: in this process.
    """
    blank = blank_evaluation(model, tokens)
    if measure is not None:
        return PlanMeter(measure, log, blank)
    here = measure_with(make_meter(model, tokens, stats, prefix=prefix, calibration=calibration))
    return PlanMeter(lambda plans: enumerate(measured.outcome for measured in here(plans)), log, blank)


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

    def __call__(self, plans: Sequence[Plan]) -> Iterator[tuple[int, Evaluation | Failure]]:
        """Measure plans; each outcome comes as it is ready, with the plan's index."""
        order = prefix_order(plans)
        for i, measured in self._runner.map(self._spec, [plans[i] for i in order]):
            self.forwards += measured.forwards
            if self._tally is not None:
                with explained(self._tally), self._tally.open("a") as file:
                    file.write(f"{measured.forwards}\n")
            yield order[i], measured.outcome

    def meter(self, log: TrialLog) -> PlanMeter:
        """Losses of plans by way of this, each measured once.

        Args:
            log: Of what was measured.
        """
        model = self._spec.replica.model
        assert model is not None  # it is only where it was sent elsewhere that it is not open
        return PlanMeter(self, log, blank_evaluation(model, self._spec.tokens))


@dataclass(frozen=True, eq=False)
class Member:
    """A model to be searched.

    Attributes:
        name: That it was opened by, for workers that open it anew.
        model: In float.
        tokens: Calibration, selection and report.
        remake: As of `Replica`.
    """

    name: str
    model: Model
    tokens: tuple[TokenSet, TokenSet, TokenSet]
    remake: Remake | None = None

    @cached_property
    def calibration(self) -> Calibration:
        """For roundings that look at what a projection reads: what one search rounds the next need not."""
        return Calibration(self.model, self.tokens[0])


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

    @property
    def elsewhere(self) -> bool:
        """Whether others than this process measure."""
        return not isinstance(self.runner, ThisProcess)

    def measurer(
        self, member: Member, tokens: TokenSet, stats: ActivationStats | None, tally: Path | None = None
    ) -> Measurer:
        """What measures plans of a model on one of its token sets; arguments as `MeterSpec` and `Measurer`."""
        if self.elsewhere:
            member.model.forget_blocks()  # the memory is the workers'
        share = self.runner.share
        replica = Replica(member.model, member.name, remake=member.remake, revision=self.revision, share=share)
        more: dict[str, Any] = {"calibration": member.calibration, "keep_bytes": self.keep_bytes}
        return Measurer(self.runner, MeterSpec(replica, tokens, stats, **more), tally)

    def within(self, place: str) -> Bench:
        """The same, with progress that says where in a larger run it is."""
        return self._replace(progress=lambda stage, done, total: self.progress(f"{place} {stage}", done, total))
