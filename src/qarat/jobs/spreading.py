"""Passes over windows, shared out: each worker walks the model with some of them, and what comes of it is put together.

A set is cut into parts between batches, so nothing rounds otherwise than in one process: prices and losses are by
window, and laid one behind the other they are the same to the byte. Observed maxima, counts, histograms and peaks are
the same too; sums over all windows are sums of the parts' sums, in float64 and in the parts' order, and up to four
workers the parts are the same. What is given up: every part brings in each block, and rounds its weights, anew.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch

from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.replicas import Replica
from qarat.jobs.runners.base import Runner, ThisProcess
from qarat.model import passes
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages import observe as observing
from qarat.stages.measure import divergence, perplexity
from qarat.stages.measure.divergence import Compared, CompareModels, compare_here
from qarat.stages.measure.perplexity import Losses, losses_here
from qarat.stages.observe import Watch, collect_here
from qarat.stages.observe.collectors import Collector
from qarat.stages.prices import METRICS
from qarat.stages.prices.changes import Prices, Pricing
from qarat.stages.prices.metric import Metric
from qarat.stages.rounding import needs_calibration
from qarat.stages.rounding.inputs import Calibration
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import Scheme

PARTS = 8
"""Parts of a set that is observed, whatever the number of workers up to half of it."""

R = TypeVar("R")


class Part(NamedTuple):
    """Neighbouring windows of a token set.

    Attributes:
        tokens: Those windows.
        first: Index of the first of them in the whole set.
    """

    tokens: TokenSet
    first: int


def cut(tokens: TokenSet, batch_tokens: int, parts: int) -> list[Part]:
    """A token set in parts of nearly equal size; batches are cut in each as in the whole.

    Args:
        tokens: The set.
        batch_tokens: Of the runtime.
        parts: At most so many.
    """
    rows = len(tokens.batches(batch_tokens)[0])
    batches = -(-len(tokens) // rows)
    parts = min(parts, batches)
    edges = [i * batches // parts * rows for i in range(parts + 1)]
    return [Part(tokens.part(slice(first, end)), first) for first, end in itertools.pairwise(edges)]


class Spread:
    """Passes over the windows of one model, by the workers of a runner.

    Attributes:
        replica: Of the model.
    """

    def __init__(self, runner: Runner, replica: Replica) -> None:
        """Nothing is opened yet.

        Args:
            runner: Whose workers walk.
            replica: What each of them walks.
        """
        self.replica, self._runner = replica, runner
        self._twice = 2 * runner.workers  # parts: a worker that is late has one to do while the others do theirs

    def collect(
        self, model: Model, tokens: TokenSet, watch: Watch, progress: Progress
    ) -> Iterator[Sequence[Collector]]:
        """As `qarat.stages.observe.collect_here`."""
        parts = self._map(model, _Collecting(watch), tokens, max(PARTS, self._twice), observing.STAGE, progress)
        whole = next(parts)
        for later in parts:
            for collectors, more in zip(whole, later, strict=True):
                for collector, added in zip(collectors, more, strict=True):
                    collector.add(added)
        yield from whole

    def prices(self, metric: Metric, pricing: Pricing) -> Prices:
        """Prices by window, as of ``metric.windows``; weights alone are looked at here."""
        if metric.weights_only:
            return metric.windows(pricing)
        looks = pricing.calibration is not None and needs_calibration(pricing.schemes)
        calibration = pricing.calibration.tokens if pricing.calibration is not None and looks else None
        # A part goes through the calibration tokens anew.
        count = self._runner.workers if looks else self._twice
        work = _Price(metric.name, tuple(pricing.schemes), pricing.stats, calibration, pricing.prefix, pricing.seed)
        parts = list(self._map(pricing.model, work, pricing.tokens, count, passes.STAGE, pricing.progress))
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def losses(self, model: Model, tokens: TokenSet, progress: Progress) -> Losses:
        """As `qarat.stages.measure.perplexity.losses_here`."""
        parts = list(self._map(model, _Losing(), tokens, self._twice, perplexity.STAGE, progress))
        kernels = Counter[str]()
        for part in parts:
            kernels |= part.kernels
        return Losses(torch.cat([part.nats for part in parts]), kernels)

    def over(self, replica: Replica) -> Spread:
        """Passes over another model, by the same workers."""
        return Spread(self._runner, replica)

    def comparing(self, base: Replica) -> CompareModels:
        """As `qarat.stages.measure.divergence.compare_here`, with a float model that workers open beside this one."""

        def compare(model: Model, _: Model, tokens: TokenSet, progress: Progress) -> Compared:
            parts = list(self._map(model, _Comparing(base), tokens, self._twice, divergence.STAGE, progress))
            nats, agrees = (torch.cat(columns) for columns in zip(*(part[:2] for part in parts), strict=True))
            # Sorting is stable: of equals the first comes first, as in one process.
            worst = sorted((token for part in parts for token in part.worst), key=lambda token: -token.divergence)
            return Compared(nats, agrees, worst[: divergence.WORST])

        return compare

    def _map(
        self,
        model: Model,
        work: Callable[[Model], Callable[[Part], R]],
        tokens: TokenSet,
        count: int,
        stage: str,
        progress: Progress,
    ) -> Iterator[R]:
        """What comes of every part, in the order of windows.

        Args:
            model: That the replica is of.
            work: From a worker's model to what it does with a part.
            tokens: To be cut.
            count: Into at most so many parts.
            stage: What progress is told.
            progress: Called with the parts done.
        """
        if model.fingerprint != self.replica.fingerprint:
            raise ValueError(f"this spreads passes over {self.replica.fingerprint}, not over {model.fingerprint}")
        if not isinstance(self._runner, ThisProcess):
            model.forget_blocks()  # the memory is the workers'
        parts = cut(tokens, model.runtime.batch_tokens, count)
        waiting: dict[int, R] = {}
        at = 0
        told = _renamed(progress, stage)
        for index, result in self._runner.map(_Make(self.replica, work), parts, progress=told):
            waiting[index] = result
            while at in waiting:
                yield waiting.pop(at)
                at += 1


def _renamed(progress: Progress, stage: str) -> Progress:
    return lambda _, done, total: progress(stage, done, total)


class _Make(Generic[R]):
    """What a worker makes of a replica and what is to be done."""

    def __init__(self, replica: Replica, work: Callable[[Model], Callable[[Part], R]]) -> None:
        self._replica, self._work = replica, work

    def __call__(self) -> Callable[[Sequence[Part]], list[R]]:
        do = self._work(self._replica())
        return lambda parts: [do(part) for part in parts]


class _Collecting(NamedTuple):
    """Watches streams."""

    watch: Watch

    def __call__(self, model: Model) -> Callable[[Part], list[list[Collector]]]:
        def do(part: Part) -> list[list[Collector]]:
            blocks = collect_here(model, part.tokens, self.watch, no_progress, part.first)
            return [[collector.to_cpu() for collector in collectors] for collectors in blocks]

        return do


class _Price(NamedTuple):
    """Prices schemes; as the attributes of a `Pricing`."""

    metric: str
    schemes: tuple[Scheme, ...]
    stats: ActivationStats | None
    calibration: TokenSet | None
    prefix: tuple[int, ...]
    seed: int

    def __call__(self, model: Model) -> Callable[[Part], Prices]:
        metric = METRICS.load(self.metric)
        inputs = None if self.calibration is None else Calibration(model, self.calibration, len(self.prefix))

        def do(part: Part) -> Prices:
            more = self.schemes, self.stats, inputs, self.prefix, self.seed, no_progress, part.first
            return metric.windows(Pricing(model, part.tokens, *more))

        return do


class _Losing(NamedTuple):
    """Measures losses."""

    def __call__(self, model: Model) -> Callable[[Part], Losses]:
        return lambda part: losses_here(model, part.tokens, no_progress)


class _Comparing(NamedTuple):
    """Compares with a float model."""

    base: Replica

    def __call__(self, model: Model) -> Callable[[Part], Compared]:
        base = self.base()
        return lambda part: compare_here(model, base, part.tokens, no_progress, part.first)
