"""Perplexity: the negative log-likelihood of a token set, window by window, under the convention that cut it.

The set says what is to be predicted behind each token: under most conventions the next one, which a window's first
never is. Per-window sums are kept, so that two models can be compared pair by pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.maths.kernels import REFERENCE
from qarat.model.layers import kernels_of
from qarat.model.model import Model
from qarat.model.tokens import NOTHING, TokenSet
from qarat.values.records.scores import Evaluation

ROWS = 128  # tokens whose logits are in memory at once: with a large vocabulary, a window's would be the peak
STAGE = "evaluate"  # what progress is told


class Losses(NamedTuple):
    """What a model loses on windows.

    Attributes:
        nats: (windows,) float64, as `window_nats` gives them.
        kernels: What computed its quantized projections, as `qarat.model.layers.kernels_of` counts.
    """

    nats: Tensor
    kernels: Counter[str]


MeasureLosses = Callable[[Model, TokenSet, Progress], Losses]
"""Gives what a model loses on every window of a set."""


def measure_perplexity(
    model: Model,
    tokens: TokenSet,
    *,
    label: str,
    plan: str = "",
    losses: MeasureLosses | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure a model on a token set, block by block.

    Args:
        model: In float or quantized.
        tokens: The report set (or the selection set, for choices).
        label: What is evaluated.
        plan: Content hash of the plan behind a quantized model.
        losses: Goes through the windows; default `losses_here`.
        progress: Called after every block.

    Raises:
        UserError: If a window's loss is NaN or Inf (names the window and its source).
    """

    def told(_: str, done: int, total: int) -> None:
        progress(f"evaluate {label}", done, total)

    lost = (losses or losses_here)(model, tokens, told)
    return evaluation_of(model, tokens, lost.nats, label=label, plan=plan, kernels=lost.kernels)


def losses_here(model: Model, tokens: TokenSet, progress: Progress) -> Losses:
    """Walk a model, in this process (a `MeasureLosses`).

    Args:
        model: In float or quantized.
        tokens: The token set.
        progress: Called after every block.
    """
    batches, targets = (f(model.runtime.batch_tokens) for f in (tokens.batches, tokens.target_batches))
    hidden = model.enter(batches)
    kernels = Counter[str]()
    progress(STAGE, 0, model.blocks + 1)
    with torch.no_grad():
        for index, block in model.walk():
            kernels += kernels_of(block)
            for j, states in enumerate(hidden):
                hidden[j] = model.run_block(index, block, states)
            progress(STAGE, index + 1, model.blocks + 1)
        nats = torch.cat([window_nats(model, h, t) for h, t in zip(hidden, targets, strict=True)])
    progress(STAGE, model.blocks + 1, model.blocks + 1)
    return Losses(nats, kernels)


def evaluation_of(
    model: Model, tokens: TokenSet, nats: Tensor, *, label: str, kernels: Mapping[str, int], plan: str = ""
) -> Evaluation:
    """The record of a token set's losses.

    Args:
        model: In float or quantized.
        tokens: The token set.
        nats: (windows,) float64, as `window_nats` gives them.
        label: What was evaluated.
        kernels: What computed its quantized projections, as `qarat.model.layers.kernels_of` counts.
        plan: Content hash of the plan behind a quantized model.

    Raises:
        UserError: If a window's loss is NaN or Inf (names the window and its source).
    """
    if not nats.isfinite().all():
        window = int((~nats.isfinite()).nonzero()[0])
        raise UserError(f"{label}: the loss of window {window} ({tokens.sources[window]}) is {float(nats[window])}")
    predicted = tokens.words or tokens.predicted
    provenance = model.provenance(tokens.fingerprint, tokens.convention)
    unit = "word" if tokens.words else "token"
    ran = {} if model.runtime.kernels == REFERENCE else dict(sorted(kernels.items()))
    return Evaluation(label, provenance, plan, tuple(nats.tolist()), predicted, tokens.sources, unit, ran)


def window_nats(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood of each window's predicted tokens.

    Args:
        model: For norm and head.
        hidden: (windows, length, hidden) behind the last block.
        targets: (windows, length) ids to be predicted there, `NOTHING` where nothing is.

    Returns:
        (windows,) float64 on the CPU, nats.
    """
    sums = torch.empty(len(targets), dtype=torch.float64)
    for j, (states, ids) in enumerate(zip(hidden, targets.to(hidden.device), strict=True)):
        scored = (ids != NOTHING).nonzero().flatten()
        # A place for all losses beforehand: small tensors in between would keep malloc from giving back the logits.
        losses = torch.empty(len(scored), device=hidden.device)
        for start in range(0, len(scored), ROWS):
            rows = scored[start : start + ROWS]
            losses[start : start + ROWS] = cross_entropy(model.logits(states[rows]), ids[rows], reduction="none")
        sums[j] = losses.double().sum()
    return sums
