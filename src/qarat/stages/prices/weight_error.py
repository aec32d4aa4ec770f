"""Weight error: Σ (W − Q(W))², from the weights alone; no token is looked at.

Divided by the number of weights, as rankings divide, it is MixQuant's score, the mean squared round-off error (arXiv
2309.17341). The sum stands in the menu because prices are added up over sites. What is given up: everything but the
weight. A scheme of inputs alone costs nothing here, and attention products, which have no weight, have no price.
"""

from __future__ import annotations

from qarat.model.passes import STAGE
from qarat.stages.prices.changes import BlockChanges, Prices, Pricing
from qarat.stages.prices.metric import Metric
from qarat.values.schemes import LinearScheme


def _errors(pricing: Pricing) -> Prices:
    """The squared error of every weight under every scheme; no token is run."""
    model, prices = pricing.model, {}
    pricing.progress(STAGE, 0, model.blocks)
    for index, block in model.walk():
        changes = BlockChanges(pricing, index, block)
        for site, scheme in changes.pairs():
            assert isinstance(scheme, LinearScheme)  # by `weights_only`
            error = changes.weight(site, scheme) - changes.linear(site).weight.detach()
            # Nothing is sampled. Any two windows have the same price: its mean is exact, its standard error 0.
            prices[site.name, str(scheme)] = error.double().square().sum().cpu().expand(2)
        pricing.progress(STAGE, index + 1, model.blocks)
    return prices


METRIC = Metric(
    "weight-error",
    "squared weight error",
    _errors,
    block_forwards=lambda model, tokens, schemes: 0,
    weights_only=True,
)
