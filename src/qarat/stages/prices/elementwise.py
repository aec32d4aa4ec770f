"""Element-wise Fisher: ½ · mean over tokens of Σ (g ∘ Δy)², as ModelOpt's AutoQuantize scores a site.

The square is taken of every channel by itself, so the Fisher information is taken as diagonal: what the errors of two
channels do together is left out. Set beside `fisher`, it says what taking the inner product first is worth. With one
channel the two are the same. Gradients are those of labels drawn from the model, as there; ModelOpt takes the text's
own next tokens (modelopt/torch/quantization/algorithms.py of NVIDIA's Model-Optimizer).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.prices.capture import capture_backward, draw_labels, passes
from qarat.stages.prices.changes import SiteChange, check_request, has_products, make_menu, per_token, price_changes
from qarat.values.records.prices import Menu
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import Scheme

METRIC = "elementwise"
UNIT = "nats per token, were channels independent"


def block_forwards(model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> int:
    """A forward, a backward, and between them a recomputation where memory asks for it."""
    return passes(model, tokens) * model.blocks


def price(
    model: Model,
    tokens: TokenSet,
    schemes: Sequence[Scheme],
    stats: ActivationStats | None = None,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Menu:
    """Price every scheme at every site it fits; arguments and errors as `qarat.stages.prices.fisher.price`."""
    check_request(model, schemes, stats)
    batches = capture_backward(model, tokens, draw_labels(seed), progress, products=has_products(schemes))
    prices = price_changes(model, schemes, stats, _score, batches)
    return make_menu(model, tokens, schemes, stats, seed, prices, metric=METRIC, unit=UNIT)


def _score(change: SiteChange) -> Tensor:
    return per_token(change, change.along_gradient().square()).mean(-1) / 2
