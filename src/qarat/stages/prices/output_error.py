"""Output error: the mean over tokens of ‖Δy‖², what a scheme changes at a site's own output.

With H the second moments of the input and a scheme for the weight alone, this is tr(ΔW H ΔWᵀ), the error that GPTQ and
its kin lower; a rounded input adds its own error and what the two do together. It is computed as the output's change
itself: up to as many tokens as a projection has inputs that costs no more than H does, it needs no matrix of inputs by
inputs for every scheme of the input, and it says how much windows differ. One forward pass, no gradient: what the
error does to the rest of the model is not seen, so errors at two sites are not in one currency.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.prices.capture import capture_forward
from qarat.stages.prices.changes import SiteChange, check_request, has_products, make_menu, per_token, price_changes
from qarat.values.records.prices import Menu
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import Scheme

METRIC = "output-error"
UNIT = "squared output error per token"


def block_forwards(model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> int:
    """One forward."""
    return model.blocks


def price(
    model: Model,
    tokens: TokenSet,
    schemes: Sequence[Scheme],
    stats: ActivationStats | None = None,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Menu:
    """Price every scheme at every site it fits; arguments and errors as `qarat.stages.prices.fisher.price`.

    Nothing is drawn: the seed changes nothing but the menu's provenance.
    """
    check_request(model, schemes, stats)
    batches = capture_forward(model, tokens, progress, products=has_products(schemes))
    prices = price_changes(model, schemes, stats, _score, batches)
    return make_menu(model, tokens, schemes, stats, seed, prices, metric=METRIC, unit=UNIT)


def _score(change: SiteChange) -> Tensor:
    return per_token(change, change.delta().float().square()).mean(-1)
