"""Fisher damage: the price of every scheme at every site from one forward and one backward pass.

Let y be a site's output for one token, Δy its change when this site alone uses a scheme, and g the gradient, with
respect to y, of the log-probability of labels *drawn from the model itself*. Then

    damage ≈ ½ · mean over tokens of (g · Δy)²

is the second-order term of the KL divergence from float: with the model's own labels the expected squared gradient is
the true Fisher information, and there is no first-order term. The inner product is taken per token before squaring;
squaring element by element instead (ModelOpt's score) loses the calibration in nats. What is left out: terms that
couple two sites or two tokens, and everything beyond second order, so damages well above 0.1 nats come out low.

Where memory is short, backward recomputes one block at a time, and takes what the walk takes
(`qarat.model.capture`). A further scheme costs one more product per site, not another pass.
"""

from __future__ import annotations

from torch import Tensor

from qarat.model.passes import backward, backward_forwards, draw_labels
from qarat.stages.prices.changes import SiteChange, per_token
from qarat.stages.prices.metric import Metric, by_changes
from qarat.values.records.prices import NATS


def score(change: SiteChange) -> Tensor:
    """Half the mean over tokens of (g · Δy)², by window."""
    return per_token(change, change.along_gradient()).square().mean(-1) / 2


_PRICES = by_changes(backward(lambda pricing: draw_labels(pricing.seed, pricing.first)), score)
METRIC = Metric("fisher", NATS, _PRICES, backward_forwards, takes_prefix=True)
