"""What metrics look at inside a block: operands and output of every site, and the gradient of the output.

Forward keeps each block's inputs, backward recomputes one block at a time with gradients: memory is that of the walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qarat.attention import PRODUCTS
from qarat.data import TokenSet
from qarat.models import Model
from qarat.workspace import Progress

__all__ = [
    "PASSES",
    "STAGE",
    "CapturedBatch",
    "Objective",
    "capture_backward",
    "capture_forward",
    "draw_labels",
    "forward_states",
    "next_tokens",
]

STAGE = "damage"  # what progress is told
PASSES = 4  # what `capture_backward` costs, in forwards: a forward, a recomputation, a backward that counts two

Objective = Callable[[Tensor, int], Tensor]
"""What is differentiated: from a window's log-probabilities, (length, vocabulary) float32, and its index in the token
set to a scalar."""


@dataclass
class Captured:
    """What one batch showed inside a block, by the sites' names within it.

    Attributes:
        operands: Of a projection its input, (windows, length, in); of a product left and right.
        outputs: As the block computed them.
        gradients: Of the objective, with respect to the outputs; empty after a pass without gradients.
    """

    operands: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


class CapturedBatch(NamedTuple):
    """What one batch showed inside one block, and that block's index and float weights."""

    index: int
    block: nn.Module
    captured: Captured


# ---------------------------------------------------------------- passes


def capture_forward(model: Model, tokens: TokenSet, progress: Progress, *, products: bool) -> Iterator[CapturedBatch]:
    """Blocks in order, and the batches of each, without gradients.

    Args:
        model: In float.
        tokens: Their windows go through it.
        progress: Called after every block.
        products: Whether the attention products are wanted too.
    """
    hidden = [model.embed(batch) for batch in tokens.batches(model.runtime.batch_tokens)]
    progress(STAGE, 0, model.blocks)
    for index, block in model.walk():
        for j, states in enumerate(hidden):
            captured = Captured()
            with torch.no_grad():
                hidden[j] = _run_capturing(model, index, block, states, captured, products)
            yield CapturedBatch(index, block, captured)
        progress(STAGE, index + 1, model.blocks)


def capture_backward(
    model: Model,
    tokens: TokenSet,
    objective: Objective,
    progress: Progress,
    *,
    products: bool,
) -> Iterator[CapturedBatch]:
    """Blocks from the last to the first, and the batches of each, with gradients.

    Args:
        model: In float.
        tokens: Their windows go through it.
        objective: What is differentiated.
        progress: Called after every block, forward and backward.
        products: Whether the attention products are wanted too.
    """
    batches = tokens.batches(model.runtime.batch_tokens)
    entrances = forward_states(model, batches, progress)
    gradients = [
        _differentiate(model, hidden, objective, first)
        for hidden, first in zip(entrances.pop(), _offsets(batches), strict=True)
    ]
    for index in reversed(range(model.blocks)):
        block = model.block(index)
        inputs = entrances.pop()
        for j in range(len(batches)):
            gradients[j], captured = _backward(model, index, block, inputs[j], gradients[j], products)
            yield CapturedBatch(index, block, captured)
        progress(STAGE, 2 * model.blocks - index, 2 * model.blocks)


def forward_states(model: Model, batches: Sequence[Tensor], progress: Progress) -> list[list[Tensor]]:
    """Hidden states at the entrance of every block, and behind the last, by block and batch.

    Args:
        model: In float or quantized.
        batches: (windows, length) token ids each.
        progress: Called after every block, of which a backward pass will see as many again.
    """
    states = [[model.embed(batch) for batch in batches]]
    progress(STAGE, 0, 2 * model.blocks)
    with torch.no_grad():
        for index, block in model.walk():
            states.append([model.run_block(index, block, hidden) for hidden in states[-1]])
            progress(STAGE, index + 1, 2 * model.blocks)
    return states


# ---------------------------------------------------------------- objectives


def draw_labels(seed: int) -> Objective:
    """Log-probability of labels drawn from the model itself, summed over a window: its squared gradient is the Fisher.

    Args:
        seed: Of the draw. Each window has a generator of its own, so that the labels do not depend on how windows are
            batched.
    """

    def objective(log_probabilities: Tensor, window: int) -> Tensor:
        # torch's generator takes the lower 32 bits of its seed. Fibonacci hashing (Knuth, TAOCP vol. 3, 6.4) keeps the
        # windows of one seed away from those of the next.
        generator = torch.Generator().manual_seed((seed * 2654435769 + window) % 2**32)
        uniform = torch.rand(log_probabilities.shape, generator=generator).to(log_probabilities.device)
        # The Gumbel trick: the largest of log p plus Gumbel noise is a draw from p.
        gumbel = -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
        labels = (log_probabilities.detach() + gumbel).argmax(-1, keepdim=True)
        return log_probabilities.gather(-1, labels).sum()

    return objective


def next_tokens(tokens: TokenSet) -> Objective:
    """Mean log-probability of a window's own next tokens: minus the loss, in nats per predicted token."""

    def objective(log_probabilities: Tensor, window: int) -> Tensor:
        labels = tokens.windows[window, 1:, None].to(log_probabilities.device)
        return log_probabilities[:-1].gather(-1, labels).mean()

    return objective


# ---------------------------------------------------------------- one block


def _differentiate(model: Model, hidden: Tensor, objective: Objective, first: int) -> Tensor:
    """Gradient of the objective with respect to the hidden states behind the last block.

    Args:
        model: For norm and head.
        hidden: (windows, length, hidden).
        objective: Of each window.
        first: Index of the batch's first window.
    """
    gradients: list[Tensor] = []
    for j, window in enumerate(hidden):
        window = window.detach().requires_grad_(True)
        with torch.enable_grad():
            value = objective(model.logits(window).log_softmax(-1), first + j)
        (gradient,) = torch.autograd.grad(value, window)
        gradients.append(gradient)
    return torch.stack(gradients)


def _backward(
    model: Model, index: int, block: nn.Module, hidden: Tensor, gradient: Tensor, products: bool
) -> tuple[Tensor, Captured]:
    """Recompute a block with gradients.

    Args:
        model: For the arguments that blocks take.
        index: Of the block.
        block: With its weights.
        hidden: (windows, length, hidden) at the block's entrance.
        gradient: Of the objective, with respect to the block's output; same shape.
        products: Whether the attention products are wanted too.

    Returns:
        The gradient with respect to ``hidden``, and what was captured on the way.
    """
    captured = Captured()
    hidden = hidden.detach().requires_grad_(True)
    with torch.enable_grad():
        output = _run_capturing(model, index, block, hidden, captured, products)
    names = list(captured.outputs)
    found = torch.autograd.grad(output, [hidden, *(captured.outputs[n] for n in names)], gradient)
    captured.gradients = dict(zip(names, found[1:], strict=True))
    captured.outputs = {n: y.detach() for n, y in captured.outputs.items()}
    return found[0], captured


def _run_capturing(
    model: Model, index: int, block: nn.Module, hidden: Tensor, captured: Captured, products: bool
) -> Tensor:
    """Hidden states behind a block; what its sites see and compute goes into ``captured``."""

    def keep(name: str, _: nn.Module, operands: tuple[Tensor, ...], output: Tensor) -> None:
        captured.operands[name] = (operands[0].detach(),)
        captured.outputs[name] = output

    home = block.get_submodule(model.family.attention)
    handles = [block.get_submodule(n).register_forward_hook(partial(keep, n)) for n in model.family.projections]
    if products:
        home.add_module(PRODUCTS, CapturingProducts(captured))
    try:
        return model.run_block(index, block, hidden)
    finally:
        for handle in handles:
            handle.remove()
        if products:
            delattr(home, PRODUCTS)


class CapturingProducts(nn.Module):
    """The attention products in float, operands and outputs kept."""

    def __init__(self, captured: Captured) -> None:
        """Keep them in ``captured``."""
        super().__init__()
        self._captured = captured

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Q·Kᵀ."""
        return self._keep("qk", q, k.transpose(-1, -2))

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        """Probabilities·V."""
        return self._keep("av", p, v)

    def _keep(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        output = left @ right
        self._captured.operands[name] = (left.detach(), right.detach())
        self._captured.outputs[name] = output
        return output


def _offsets(batches: Sequence[Tensor]) -> list[int]:
    """Index of every batch's first window."""
    offsets = [0]
    for batch in batches[:-1]:
        offsets.append(offsets[-1] + len(batch))
    return offsets
