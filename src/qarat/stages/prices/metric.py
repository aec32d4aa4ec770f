"""What a metric is: a value that says how sites are priced, and what that costs.

Five of the six look at one site at a time: a pass shows what a site reads and puts out, and a score says what a
`SiteChange` there is worth. They are `Metric.of_changes`. What a metric has to do otherwise is a function of its own
from a `Pricing` to the price in each window (`kl` runs the rest of the model, `weight_error` looks at no token).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qarat.ground.runtime import Progress
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.prices.capture import CapturedBatch, Objective, capture_backward, capture_forward, passes
from qarat.stages.prices.changes import BlockChanges, Prices, SiteChange
from qarat.stages.rounding.inputs import Calibration
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import Scheme


@dataclass(frozen=True, eq=False)
class Pricing:
    """What is to be priced.

    Attributes:
        model: In float.
        tokens: The selection set.
        schemes: Projection schemes are priced at every projection, product schemes at every attention product.
        stats: Behind static scales.
        calibration: For roundings that look at what a projection reads; None where no scheme has one.
        prefix: Ids of the tokens that every window begins with and that stay in float: Δy is 0 there.
        seed: Of what is drawn.
        progress: Called after every block.
    """

    model: Model
    tokens: TokenSet
    schemes: Sequence[Scheme]
    stats: ActivationStats | None
    calibration: Calibration | None
    prefix: tuple[int, ...]
    seed: int
    progress: Progress

    @property
    def has_products(self) -> bool:
        """Whether any scheme is one of attention products, so that a pass has to look at them."""
        return any(scheme.fits("product") for scheme in self.schemes)

    def changes(self, batch: CapturedBatch, schemes: Sequence[Scheme] | None = None) -> BlockChanges:
        """What schemes change in the block of a batch; by default all schemes."""
        chosen = self.schemes if schemes is None else schemes
        first = len(self.prefix)
        return BlockChanges(self.model, batch.index, batch.block, chosen, self.stats, self.calibration, first)


Capture = Callable[[Pricing], Iterator[CapturedBatch]]
Score = Callable[[SiteChange], Tensor]
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

    @classmethod
    def of_changes(
        cls,
        name: str,
        unit: str,
        *,
        capture: Capture,
        score: Score,
        block_forwards: BlockForwards,
        takes_prefix: bool = False,
    ) -> Metric:
        """A metric that looks at one site at a time.

        Args:
            name: As of `Metric`.
            unit: As of `Metric`.
            capture: The pass that shows sites: one block's batches after another's.
            score: The price of one site under one scheme in each window of a batch, (windows,).
            block_forwards: As of `Metric`.
            takes_prefix: As of `Metric`.
        """

        def windows(pricing: Pricing) -> Prices:
            return _score_changes(pricing, capture(pricing), score)

        return cls(name, unit, windows, block_forwards, takes_prefix=takes_prefix)


def forward(pricing: Pricing) -> Iterator[CapturedBatch]:
    """The pass of a metric that needs no gradients; costs one forward."""
    return capture_forward(pricing.model, pricing.tokens, pricing.progress, products=pricing.has_products)


def backward(objective: Callable[[Pricing], Objective]) -> Capture:
    """The pass of a metric that needs gradients; costs `backward_forwards`.

    Args:
        objective: What is differentiated.
    """
    return lambda pricing: capture_backward(
        pricing.model, pricing.tokens, objective(pricing), pricing.progress, products=pricing.has_products
    )


def backward_forwards(model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> int:
    """A forward, a backward, and between them a recomputation where memory asks for it."""
    return passes(model, tokens) * model.blocks


def _score_changes(pricing: Pricing, batches: Iterator[CapturedBatch], score: Score) -> Prices:
    """The score of every scheme at every site it fits."""
    scores: dict[tuple[str, str], list[Tensor]] = {}
    changes: BlockChanges | None = None
    for batch in batches:
        if changes is None or changes.index != batch.index:  # one block's weights are rounded once for all its batches
            changes = pricing.changes(batch)
        for change in changes.of(batch):
            scores.setdefault((change.site.name, str(change.scheme)), []).append(score(change).double().cpu())
    return {key: torch.cat(windows) for key, windows in scores.items()}
