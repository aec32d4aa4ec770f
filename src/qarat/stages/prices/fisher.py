"""Fisher damage: the price of every scheme at every site from one forward and one backward pass.

Let y be a site's output for one token, Δy its change when this site alone uses a scheme, and g the gradient, with
respect to y, of the log-probability of labels *drawn from the model itself*. Then

    damage ≈ ½ · mean over tokens of (g · Δy)²

is the second-order term of the KL divergence from float: with the model's own labels the expected squared gradient is
the true Fisher information, and there is no first-order term. The inner product is taken per token before squaring;
squaring element by element instead (ModelOpt's score) loses the calibration in nats. What is left out: terms that
couple two sites or two tokens, and everything beyond second order, so damages well above 0.1 nats come out low.

Where memory is short, backward recomputes one block at a time, and takes what the walk takes
(`qarat.stages.prices.capture`). A further scheme costs one more product per site, not another pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.prefixes import check_prefix
from qarat.model.tokens import TokenSet
from qarat.stages.prices.capture import capture_backward, draw_labels, passes
from qarat.stages.prices.changes import SiteChange, check_request, has_products, make_menu, per_token, price_changes
from qarat.values.records.prices import NATS, Menu
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import Scheme

METRIC = "fisher"


def block_forwards(model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> int:
    """A forward, a backward, and between them a recomputation where memory asks for it."""
    return passes(model, tokens) * model.blocks


def price(
    model: Model,
    tokens: TokenSet,
    schemes: Sequence[Scheme],
    stats: ActivationStats | None = None,
    *,
    prefix: tuple[int, ...] = (),
    seed: int = 0,
    progress: Progress = no_progress,
) -> Menu:
    """Price every scheme at every site it fits.

    Args:
        model: In float.
        tokens: The selection set.
        schemes: Projection schemes are priced at every projection, product schemes at every attention product.
        stats: Behind static scales.
        prefix: Ids of the tokens that every window begins with and that stay in float: Δy is 0 there.
        seed: Of the labels drawn from the model.
        progress: Called after every block, forward and backward.

    Raises:
        UserError: Static scales without stats, or with stats of another model or prefix or without a stream that is
            needed; windows that do not begin with the prefix.
    """
    check_prefix(tokens, prefix)
    check_request(model, schemes, stats, prefix)
    batches = capture_backward(model, tokens, draw_labels(seed), progress, products=has_products(schemes))
    prices = price_changes(model, schemes, stats, _score, batches, len(prefix))
    return make_menu(model, tokens, schemes, stats, seed, prices, prefix=prefix, metric=METRIC, unit=NATS)


def _score(change: SiteChange) -> Tensor:
    """Half the mean over tokens of (g · Δy)², by window."""
    return per_token(change, change.along_gradient()).square().mean(-1) / 2
