"""Local intrinsic dimension: how far a scheme moves that of the tokens behind the site's block, by nearest neighbours.

Mean over tokens of |LID' − LID|, a window's tokens being each other's neighbours. Dimensions of hidden states tell true
answers from invented ones (Yin et al. 2024, arXiv 2402.18048). Whether what a scheme does to them tells its damage is
another question, which a check against measured losses answers (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qarat.maths.dimension import local_dimensions
from qarat.model.model import Model
from qarat.model.passes import STAGE
from qarat.model.tokens import TokenSet
from qarat.stages.prices.changes import BlockChanges, Prices, Pricing
from qarat.stages.prices.metric import Metric
from qarat.values.schemes import Scheme


def _block_forwards(model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> int:
    """One a block, and another for every site and scheme."""
    return model.blocks + sum(scheme.fits(site.kind) for site in model.sites() for scheme in schemes)


@torch.no_grad()
def _moves(pricing: Pricing) -> Prices:
    """What every scheme at every site moves, by window."""
    model, prices = pricing.model, {}
    hidden = [model.embed(batch) for batch in pricing.tokens.batches(model.runtime.batch_tokens)]
    pricing.progress(STAGE, 0, model.blocks)
    for index, block in model.walk():
        changes = BlockChanges(pricing, index, block)
        leaving = [model.run_block(index, block, states) for states in hidden]
        before = [local_dimensions(states) for states in leaving]
        for site, scheme in changes.pairs():
            after = [local_dimensions(changes.run(model, site, scheme, states)) for states in hidden]
            moved = [(a - b).abs().mean(-1) for a, b in zip(after, before, strict=True)]
            prices[site.name, str(scheme)] = torch.cat(moved).cpu()
        hidden = leaving
        pricing.progress(STAGE, index + 1, model.blocks)
    return prices


METRIC = Metric("lid", "change of local dimension", _moves, _block_forwards)
