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
from typing import Any, TypeVar

import torch

from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.replicas import Replica
from qarat.jobs.runners.base import Runner, ThisProcess, Work
from qarat.jobs.window_work import (
    Answering,
    Collecting,
    Comparing,
    Losing,
    Make,
    Metering,
    PlanPart,
    Pricer,
    Questions,
    WindowPart,
)
from qarat.model import passes
from qarat.model.model import Model
from qarat.model.prefixes import FloatPrefix
from qarat.model.tokens import TokenSet
from qarat.stages import observe as observing
from qarat.stages.choose.trials import MeasureMany
from qarat.stages.measure import divergence, perplexity
from qarat.stages.measure.divergence import CompareModels, TokenDivergences
from qarat.stages.measure.meter import outcome_of
from qarat.stages.measure.perplexity import Losses
from qarat.stages.measure.tasks.harness_model import Answer
from qarat.stages.observe import Watch
from qarat.stages.observe.collectors import Collector
from qarat.stages.prices.changes import Prices, Pricing
from qarat.stages.prices.metric import Metric
from qarat.stages.rounding import needs_calibration
from qarat.stages.rounding.inputs import Calibration
from qarat.values.plans import Plan
from qarat.values.records.scores import Evaluation, Failure
from qarat.values.records.streams import ActivationStats

PARTS = 8
"""Parts of a set that is observed, whatever the number of workers up to half of it."""

T = TypeVar("T")
R = TypeVar("R")


def cut(tokens: TokenSet, batch_tokens: int, parts: int) -> list[WindowPart]:
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
    return [WindowPart(tokens.part(slice(first, end)), first) for first, end in itertools.pairwise(edges)]


class Spread:
    """Passes over the windows of one model, by the workers of a runner.

    Attributes:
        replica: Of the model.
        sees_files: As of the runner.
    """

    def __init__(self, runner: Runner, replica: Replica) -> None:
        """Nothing is opened yet.

        Args:
            runner: Whose workers walk.
            replica: What each of them walks.
        """
        self.replica, self._runner = replica, runner
        self.sees_files = runner.sees_files
        self._twice = 2 * runner.workers  # parts: a worker that is late has one to do while the others do theirs

    @classmethod
    def by(cls, runner: Runner, replica: Replica) -> Spread | None:
        """None where the runner is this process, in which passes need no parts."""
        return None if isinstance(runner, ThisProcess) else cls(runner, replica)

    def collect(
        self, model: Model, tokens: TokenSet, watch: Watch, progress: Progress
    ) -> Iterator[Sequence[Collector]]:
        """As `qarat.stages.observe.collect_here`."""
        parts = self._map(model, Collecting(watch), tokens, max(PARTS, self._twice), observing.STAGE, progress)
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
        work = Pricer(metric.name, tuple(pricing.schemes), pricing.stats, calibration, pricing.prefix, pricing.seed)
        parts = list(self._map(pricing.model, work, pricing.tokens, count, passes.STAGE, pricing.progress))
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def losses(self, model: Model, tokens: TokenSet, progress: Progress) -> Losses:
        """As `qarat.stages.measure.perplexity.losses_here`."""
        return _joined(list(self._map(model, Losing(), tokens, self._twice, perplexity.STAGE, progress)))

    def over(self, replica: Replica) -> Spread:
        """Passes over another model, by the same workers."""
        return Spread(self._runner, replica)

    def comparing(self, base: Replica) -> CompareModels:
        """As `qarat.stages.measure.divergence.compare_here`, with a float model that workers open beside this one."""

        def compare(model: Model, _: Model, tokens: TokenSet, progress: Progress) -> TokenDivergences:
            parts = list(self._map(model, Comparing(base), tokens, self._twice, divergence.STAGE, progress))
            nats, agrees = (torch.cat(columns) for columns in zip(*(part[:2] for part in parts), strict=True))
            # Sorting is stable: of equals the first comes first, as in one process.
            worst = sorted((token for part in parts for token in part.worst), key=lambda token: -token.divergence)
            return TokenDivergences(nats, agrees, worst[: divergence.WORST])

        return compare

    def measuring(
        self,
        model: Model,
        tokens: TokenSet,
        stats: ActivationStats | None,
        prefix: FloatPrefix | None,
        calibration: Calibration | None,
    ) -> MeasureMany:
        """What measures plans, of each of which every worker measures some windows; arguments as of `make_meter`."""
        parts = self._cut(model, tokens, self._twice)
        read = None if calibration is None else calibration.tokens
        metering = Metering(len(parts), stats, () if prefix is None else prefix.tokens, read)
        make = Make(self.replica, metering)  # one for all plans, so that workers keep what it makes

        def measure(plans: Sequence[Plan]) -> Iterator[tuple[int, Evaluation | Failure]]:
            items = [PlanPart(plan, part) for plan in plans for part in parts]
            lost: list[Losses] = []
            for losses in self._in_order(make, items, no_progress):
                lost.append(losses)
                if len(lost) % len(parts) == 0:
                    index = len(lost) // len(parts) - 1
                    yield index, outcome_of(model, tokens, _joined(lost[-len(parts) :]), plans[index].note)

        return measure

    def answering(self, model: Model) -> Answer:
        """What asks a model the questions of a harness, by `qarat.stages.measure.tasks.harness_model.wrap_model`."""
        self._check(model)
        make = Make(self.replica, Answering())

        def answer(kind: str, requests: Sequence[Any], progress: Progress) -> list[Any]:
            questions = [Questions(kind, group) for group in _grouped(requests, self._twice)]
            return [a for answers in self._in_order(make, questions, progress) for a in answers]

        return answer

    def _map(
        self,
        model: Model,
        work: Callable[[Model], Callable[[WindowPart], R]],
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
        parts = self._cut(model, tokens, count)
        return self._in_order(Make(self.replica, work), parts, lambda _, done, total: progress(stage, done, total))

    def _cut(self, model: Model, tokens: TokenSet, count: int) -> list[WindowPart]:
        """The parts of a set, in which the replica's model is to be walked."""
        self._check(model)
        return cut(tokens, model.runtime.batch_tokens, count)

    def _check(self, model: Model) -> None:
        if model.fingerprint != self.replica.fingerprint:
            raise ValueError(f"this spreads passes over {self.replica.fingerprint}, not over {model.fingerprint}")
        if not isinstance(self._runner, ThisProcess):
            model.forget_blocks()  # the memory is the workers'

    def _in_order(self, make: Callable[[], Work[T, R]], items: Sequence[T], progress: Progress) -> Iterator[R]:
        """The results of the runner's `map`, in the order of the items."""
        waiting: dict[int, R] = {}
        at = 0
        for index, result in self._runner.map(make, items, progress=progress):
            waiting[index] = result
            while at in waiting:
                yield waiting.pop(at)
                at += 1


def _grouped(requests: Sequence[Any], count: int) -> list[tuple[Any, ...]]:
    """Requests in at most so many groups of neighbours; those of one question stay together."""
    by_question = [tuple(group) for _, group in itertools.groupby(requests, lambda r: (r.task_name, r.doc_id))]
    count = min(count, len(by_question))
    edges = [i * len(by_question) // count for i in range(count + 1)] if count else []
    return [tuple(itertools.chain(*by_question[first:end])) for first, end in itertools.pairwise(edges)]


def _joined(parts: Sequence[Losses]) -> Losses:
    """The losses of all windows, from those of the parts."""
    kernels = Counter[str]()
    for part in parts:
        kernels |= part.kernels
    return Losses(torch.cat([part.nats for part in parts]), kernels)
