"""Fisher damage: the price of every scheme at every site from one forward and one backward pass (DESIGN section 7).

Let y be a site's output for one token, Δy its change when this site alone uses a scheme, and g the gradient, with
respect to y, of the log-probability of labels *drawn from the model itself*. Then

    damage ≈ ½ · mean over tokens of (g · Δy)²

is the second-order term of the KL divergence from float: with the model's own labels the expected squared gradient is
the true Fisher information, and there is no first-order term. The inner product is taken per token before squaring;
squaring element by element instead (ModelOpt's score) loses the calibration in nats. What is left out: terms that
couple two sites or two tokens, and everything beyond second order, so damages well above 0.1 nats come out low.

Forward keeps each block's inputs, backward recomputes one block at a time: memory is that of the walk. A further scheme
costs one more product per site, not another pass.

Around a plan, damage is what the divergence *from float* gains when one site leaves the plan's scheme for another:

    damage ≈ mean over tokens of [f · Δy + ½ (g · Δy)²]

with Δy the change from the plan's output, g as above but of the quantized model, and f the gradient of its
cross-entropy with float's probabilities. Here there is a first-order term, because the plan is not where the divergence
is least: it carries how this site's error goes with those that are there already, which sums of single-site damages
leave out. It takes every token's probabilities, so nothing is drawn for it, and it may be negative. It costs a second
backward pass. Gradients go straight through roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qarat.damage.capture import Objective, capture_backward, draw_labels, forward_states
from qarat.damage.changes import Prices, SiteChange, check_request, has_products, make_menu, per_token, price_changes
from qarat.data import TokenSet
from qarat.errors import UserError
from qarat.models import Model
from qarat.records import NATS, ActivationStats, Menu
from qarat.schemes import Scheme
from qarat.workspace import Progress, no_progress

__all__ = ["AROUND", "METRIC", "price"]

METRIC = "fisher"
AROUND = "fisher-around-plan"
"""The metric's name where prices are over a plan's loss instead of float's."""


def price(
    model: Model,
    tokens: TokenSet,
    schemes: Sequence[Scheme],
    stats: ActivationStats | None = None,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
    around: Model | None = None,
) -> Menu:
    """Price every scheme at every site it fits.

    Args:
        model: In float.
        tokens: The selection set.
        schemes: Projection schemes are priced at every projection, product schemes at every attention product.
        stats: Behind static scales.
        seed: Of the labels drawn from the model.
        progress: Called after every block, forward and backward; with ``around`` twice over.
        around: The model under a plan, as `qarat.conversion.quantize` makes it; prices are then over its loss.

    Raises:
        UserError: Static scales without stats, or with stats of another model or without a stream that is needed; a
            plan of another model.
    """
    check_request(model, schemes, stats)
    if around is not None and around.fingerprint != model.fingerprint:
        theirs, ours = around.fingerprint[:12], model.fingerprint[:12]
        raise UserError(f"the plan to price around is of the model {theirs}…, this is {ours}…; quantize this one")

    def prices(objective: Objective, score: Callable[[SiteChange], Tensor]) -> Prices:
        products = has_products(schemes)
        batches = capture_backward(model, tokens, objective, progress, products=products, around=around)
        return price_changes(model, schemes, stats, score, batches)

    found = prices(draw_labels(seed), _second_order)
    if around is not None:
        first = prices(_cross_entropy(model, tokens), _first_order)
        found = {key: first[key] + found[key] for key in found}
    metric = METRIC if around is None else AROUND
    return make_menu(model, tokens, schemes, stats, seed, found, metric=metric, unit=NATS)


def _second_order(change: SiteChange) -> Tensor:
    """Half the mean over tokens of (g · Δy)², by window."""
    return per_token(change, change.along_gradient()).square().mean(-1) / 2


def _first_order(change: SiteChange) -> Tensor:
    """The mean over tokens of f · Δy, by window."""
    return per_token(change, change.along_gradient()).mean(-1)


def _cross_entropy(model: Model, tokens: TokenSet) -> Objective:
    """Of a window's log-probabilities with the float model's probabilities, summed over tokens."""
    batches = tokens.batches(model.runtime.batch_tokens)
    hidden = torch.cat(forward_states(model, batches, no_progress).pop())

    def objective(log_probabilities: Tensor, window: int) -> Tensor:
        with torch.no_grad():
            probabilities = model.logits(hidden[window]).softmax(-1)
        return -(probabilities * log_probabilities).sum()

    return objective
