"""What a metric is: a value that says how sites are priced, and what that costs.

Four of the seven look at one site at a time: a pass (`qarat.model.passes`) shows what a site reads and puts out,
a score says what a `SiteChange` there is worth, and `by_changes` puts the two together. What a metric has to do
otherwise is a function of its own from a `Pricing` to the price in each window (`kl` runs the rest of the model, `lid`
the block, `weight_error` looks at no token).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qarat.model.model import Model
from qarat.model.passes import CapturedBatch
from qarat.model.tokens import TokenSet
from qarat.stages.prices.changes import BlockChanges, Prices, Pricing, SiteChange
from qarat.values.schemes import Scheme

Capture = Callable[[Pricing], Iterator[CapturedBatch]]
Score = Callable[[SiteChange], Tensor]
PriceWindows = Callable[["Metric", Pricing], Prices]
"""Gives what a metric's ``windows`` gives of a pricing that was checked."""
BlockForwards = Callable[[Model, TokenSet, Sequence[Scheme]], int]


@dataclass(frozen=True)
class Metric:
    """How sites are priced.

    Attributes:
        name: As its module's, ``-`` for ``_``.
        unit: Of the prices; `qarat.values.records.prices.NATS` only where they are losses that add up.
        windows: Every (site, scheme) with its price in each window, (windows,) float64.
        block_forwards: What pricing costs, in forwards through one block for every token of the set; a recomputation
            counts one, a backward two. Products with the schemes' weights are not forwards, and are not counted.
        weights_only: Whether it looks at weights alone, so that stats change nothing and attention products, which
            have no weight, have no price.
        takes_prefix: Whether tokens in front may stay in float.
    """

    name: str
    unit: str
    windows: Callable[[Pricing], Prices]
    block_forwards: BlockForwards
    weights_only: bool = False
    takes_prefix: bool = False


def by_changes(capture: Capture, score: Score) -> Callable[[Pricing], Prices]:
    """The prices of a metric that looks at one site at a time.

    Args:
        capture: The pass that shows sites: one block's batches after another's.
        score: The price of one site under one scheme in each window of a batch, (windows,).
    """

    def windows(pricing: Pricing) -> Prices:
        tally = Tally(pricing, score)
        for seen in capture(pricing):
            tally.add(seen)
        return tally.prices()

    return windows


class Tally:
    """Prices that grow with the batches of a pass."""

    def __init__(self, pricing: Pricing, score: Score) -> None:
        """Nothing is priced yet; arguments as of `by_changes` and its result."""
        self._pricing, self._score = pricing, score
        # Numbers, no tensors: small tensors between large ones would keep malloc from giving those back.
        self._scores: dict[tuple[str, str], list[float]] = {}
        self._changes: BlockChanges | None = None

    def add(self, seen: CapturedBatch) -> None:
        """Price every scheme at every site of a batch's block."""
        if self._changes is None or self._changes.index != seen.index:  # weights are rounded once for all batches
            self._changes = BlockChanges(self._pricing, seen.index, seen.block)
        for change in self._changes.of(seen.captured):
            key = change.site.name, str(change.scheme)
            self._scores.setdefault(key, []).extend(self._score(change).double().tolist())

    def prices(self) -> Prices:
        """In the windows seen so far."""
        return {key: torch.tensor(windows, dtype=torch.float64) for key, windows in self._scores.items()}
