"""Gradient times error: Σ |∂L/∂W ∘ ΔW| + Σ |∂L/∂x ∘ Δx|, by window, as AutoRound's AutoScheme scores a site.

L is the loss on the window's own next tokens. Without the absolute values this would be the first-order change of the
loss, in which the terms mostly cancel; with them it bounds that change from above, far from it, and says only which
site is dearer. An attention product has two inputs and no weight. AutoScheme sums the weight's part over windows and
averages the input's, at the quantized model (auto_round/auto_scheme/delta_loss.py of intel/auto-round); here both are
averaged, at the float model, as for every other metric.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qarat.model.passes import backward, backward_forwards, next_tokens
from qarat.stages.prices.changes import SiteChange
from qarat.stages.prices.metric import Metric, by_changes
from qarat.values.schemes import CacheScheme, LinearScheme


def _score(change: SiteChange) -> Tensor:
    """The bound, by window: from the output's gradient follow those of the operands."""
    gradient = change.gradient
    assert gradient is not None
    if isinstance(change.scheme, CacheScheme):
        return _bound(gradient, change.delta())
    before = change.operands
    after = change.block.operands(change.site, change.scheme, before)
    if isinstance(change.scheme, LinearScheme):
        weight = change.block.linear(change.site).weight.detach()
        error = change.block.weight(change.site, change.scheme) - weight
        # y = x·Wᵀ, so ∂L/∂x = g·W, (windows, length, in), and ∂L/∂W = gᵀ·x, (out, in) a window.
        bound = _bound(gradient @ weight, after[0] - before[0])
        for j in range(len(gradient)):  # one window at a time: its gradient has the weight's size
            bound[j] += (gradient[j].T @ before[0][j] * error).abs().sum()
        return bound
    # y = A·B, so ∂L/∂A = g·Bᵀ and ∂L/∂B = Aᵀ·g, each of its operand's shape.
    left = _bound(gradient @ before[1].transpose(-1, -2), after[0] - before[0])
    return left + _bound(before[0].transpose(-1, -2) @ gradient, after[1] - before[1])


def _bound(gradient: Tensor, error: Tensor) -> Tensor:
    """Sum of |gradient ∘ error| of each window, (windows,) float64."""
    return (gradient * error).abs().flatten(1).sum(1, dtype=torch.float64)


_PRICES = by_changes(backward(lambda pricing: next_tokens(pricing.tokens)), _score)
METRIC = Metric("gradient-error", "nats per token, a bound to first order", _PRICES, backward_forwards)
