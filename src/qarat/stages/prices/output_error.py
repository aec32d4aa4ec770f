"""Output error: the mean over tokens of ‖Δy‖², what a scheme changes at a site's own output.

With H the second moments of the input and a scheme for the weight alone, this is tr(ΔW H ΔWᵀ), the error that GPTQ and
its kin lower; a rounded input adds its own error and what the two do together. It is computed as the output's change
itself: up to as many tokens as a projection has inputs that costs no more than H does, it needs no matrix of inputs by
inputs for every scheme of the input, and it says how much windows differ. One forward pass, no gradient: what the
error does to the rest of the model is not seen, so errors at two sites are not in one currency.
"""

from __future__ import annotations

from torch import Tensor

from qarat.model.passes import forward
from qarat.stages.prices.changes import SiteChange, per_token
from qarat.stages.prices.metric import Metric, by_changes


def _score(change: SiteChange) -> Tensor:
    """Mean over tokens of ‖Δy‖², by window."""
    return per_token(change, change.delta().float().square()).mean(-1)


_PRICES = by_changes(forward, _score)
METRIC = Metric("output-error", "squared output error per token", _PRICES, lambda model, tokens, schemes: model.blocks)
