"""What workers do with windows: from a model to a function of a part of a token set, each of which can be pickled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from qarat.ground.runtime import no_progress
from qarat.jobs.bench import block_builder
from qarat.jobs.replicas import Replica
from qarat.jobs.runners.base import Work
from qarat.model.model import Model
from qarat.model.prefixes import FloatPrefix
from qarat.model.tokens import TokenSet
from qarat.stages.measure.divergence import TokenDivergences, compare_here
from qarat.stages.measure.meter import Meter, room_for_states
from qarat.stages.measure.perplexity import Losses, losses_here
from qarat.stages.measure.tasks.harness_model import wrap_model
from qarat.stages.observe import Watch, collect_here
from qarat.stages.observe.collectors import Collector
from qarat.stages.prices import METRICS
from qarat.stages.prices.changes import Prices, Pricing
from qarat.stages.rounding.inputs import Calibration
from qarat.values.plans import Plan
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import Scheme

T = TypeVar("T")
R = TypeVar("R")


class WindowPart(NamedTuple):
    """Neighbouring windows of a token set.

    Attributes:
        tokens: Those windows.
        first: Index of the first of them in the whole set.
    """

    tokens: TokenSet
    first: int


class Make(Generic[T, R]):
    """What a worker makes of a replica and what is to be done."""

    def __init__(self, replica: Replica, work: Callable[[Model], Callable[[T], R]]) -> None:
        self._replica, self._work = replica, work

    def __call__(self) -> Work[T, R]:
        """Open the model; errors as of a `Replica`."""
        do = self._work(self._replica())
        return lambda items: [do(item) for item in items]


class Collecting(NamedTuple):
    """Watches streams."""

    watch: Watch

    def __call__(self, model: Model) -> Callable[[WindowPart], list[list[Collector]]]:
        """Of every block the collectors; errors as `collect_here`."""

        def do(part: WindowPart) -> list[list[Collector]]:
            blocks = collect_here(model, part.tokens, self.watch, no_progress, part.first)
            return [[collector.to_cpu() for collector in collectors] for collectors in blocks]

        return do


class Pricer(NamedTuple):
    """Prices schemes; as the attributes of a `Pricing`."""

    metric: str
    schemes: tuple[Scheme, ...]
    stats: ActivationStats | None
    calibration: TokenSet | None
    prefix: tuple[int, ...]
    seed: int

    def __call__(self, model: Model) -> Callable[[WindowPart], Prices]:
        """Of every site and scheme the prices by window."""
        metric = METRICS.load(self.metric)
        inputs = None if self.calibration is None else Calibration(model, self.calibration, len(self.prefix))

        def do(part: WindowPart) -> Prices:
            more = self.schemes, self.stats, inputs, self.prefix, self.seed, no_progress, part.first
            return metric.windows(Pricing(model, part.tokens, *more))

        return do


class Losing(NamedTuple):
    """Measures losses."""

    def __call__(self, model: Model) -> Callable[[WindowPart], Losses]:
        """As `losses_here`."""
        return lambda part: losses_here(model, part.tokens, no_progress)


class Comparing(NamedTuple):
    """Compares with a float model."""

    base: Replica

    def __call__(self, model: Model) -> Callable[[WindowPart], TokenDivergences]:
        """As `compare_here`; both models are opened once."""
        base = self.base()
        return lambda part: compare_here(model, base, part.tokens, no_progress, part.first)


class PlanPart(NamedTuple):
    """A plan to be measured on some windows."""

    plan: Plan
    part: WindowPart


class Metering(NamedTuple):
    """Measures plans, each part of the windows with a meter of its own.

    Attributes:
        parts: How many there are; hidden states have room for them all.
        stats: Behind static scales.
        prefix: Ids of the tokens in front of all plans that stay in float.
        calibration: Tokens behind roundings that look at inputs.
    """

    parts: int
    stats: ActivationStats | None
    prefix: tuple[int, ...]
    calibration: TokenSet | None

    def __call__(self, model: Model) -> Callable[[PlanPart], Losses]:
        """As `Meter.lose_many` of one plan."""
        prefix = FloatPrefix(model, self.prefix) if self.prefix else None
        inputs = None if self.calibration is None else Calibration(model, self.calibration, len(self.prefix))
        build = block_builder(model, self.stats, prefix, inputs)
        room = room_for_states(model) // self.parts
        meters: dict[int, Meter] = {}  # by first window

        def do(planned: PlanPart) -> Losses:
            first = planned.part.first
            if first not in meters:
                meters[first] = Meter(model, planned.part.tokens, build, keep_bytes=room)
            return meters[first].lose_many([planned.plan])[0]

        return do


class Questions(NamedTuple):
    """Requests of the lm-evaluation-harness.

    Attributes:
        kind: The method that answers them.
        requests: Of neighbouring questions, each whole.
    """

    kind: str
    requests: tuple[Any, ...]


class Answering(NamedTuple):
    """Answers questions of the harness."""

    def __call__(self, model: Model) -> Callable[[Questions], list[Any]]:
        """As `wrap_model`; errors too."""
        harness_model = wrap_model(model, "", no_progress)
        return lambda questions: getattr(harness_model, questions.kind)(list(questions.requests))
