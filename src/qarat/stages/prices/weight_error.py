"""Weight error: Σ (W − Q(W))², from the weights alone; no token is looked at.

Divided by the number of weights, as rankings divide, it is MixQuant's score, the mean squared round-off error (arXiv
2309.17341). The sum stands in the menu because prices are added up over sites. What is given up: everything but the
weight. A scheme of inputs alone costs nothing here, and attention products, which have no weight, have no price.
"""

from __future__ import annotations

from collections.abc import Sequence

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.prices.capture import STAGE
from qarat.stages.prices.changes import BlockChanges, make_menu
from qarat.values.records.prices import Menu
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LinearScheme, Scheme

METRIC = "weight-error"
PRODUCTS = False
UNIT = "squared weight error"


def block_forwards(model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> int:
    """None at all."""
    return 0


def price(
    model: Model,
    tokens: TokenSet,
    schemes: Sequence[Scheme],
    stats: ActivationStats | None = None,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Menu:
    """Price every scheme of projections at every projection.

    Args:
        model: In float.
        tokens: Not looked at; the menu names them, so that it can be set beside others.
        schemes: Those of attention products get no price.
        stats: Not looked at: inputs do not count.
        seed: Nothing is drawn; it stands in the provenance.
        progress: Called after every block.

    Raises:
        UserError: If no scheme is one of projections.
    """
    model.require_float("price")
    linear = [scheme for scheme in schemes if isinstance(scheme, LinearScheme)]
    if not linear:
        raise UserError(f"{METRIC} is about weights, and attention products have none; give a scheme with w=…")
    prices = {}
    progress(STAGE, 0, model.blocks)
    for index, block in model.walk():
        changes = BlockChanges(model, index, block, linear, stats)
        for site, scheme in changes.pairs():
            assert isinstance(scheme, LinearScheme)
            error = changes.weight(site, scheme) - changes.linear(site).weight.detach()
            # Nothing is sampled. Any two windows have the same price: its mean is exact, its standard error 0.
            prices[site.name, str(scheme)] = error.double().square().sum().cpu().expand(2)
        progress(STAGE, index + 1, model.blocks)
    return make_menu(model, tokens, linear, None, seed, prices, metric=METRIC, unit=UNIT)
