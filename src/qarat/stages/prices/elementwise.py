"""Element-wise Fisher: ½ · mean over tokens of Σ (g ∘ Δy)², as ModelOpt's AutoQuantize scores a site.

The square is taken of every channel by itself, so the Fisher information is taken as diagonal: what the errors of two
channels do together is left out. Set beside `fisher`, it says what taking the inner product first is worth. With one
channel the two are the same. Gradients are those of labels drawn from the model, as there; ModelOpt takes the text's
own next tokens (modelopt/torch/quantization/algorithms.py of NVIDIA's Model-Optimizer).
"""

from __future__ import annotations

from torch import Tensor

from qarat.model.passes import backward, backward_forwards, draw_labels
from qarat.stages.prices.changes import SiteChange, per_token
from qarat.stages.prices.metric import Metric, by_changes


def _score(change: SiteChange) -> Tensor:
    """Half the mean over tokens of Σ (g ∘ Δy)², by window."""
    return per_token(change, change.along_gradient().square()).mean(-1) / 2


_PRICES = by_changes(backward(lambda pricing: draw_labels(pricing.seed)), _score)
METRIC = Metric("elementwise", "nats per token, were channels independent", _PRICES, backward_forwards)
