"""What metrics look at inside a block: operands and output of every site, and the gradient of the output.

Forward keeps each block's inputs, backward recomputes one block at a time with gradients: memory is that of the walk.

Around a quantized model gradients must pass roundings, whose derivative is zero almost everywhere. They go straight
through (Bengio et al. 2013, arXiv 1308.3432): a site is differentiated as the product of its operands as they are
rounded, and these as if they followed its inputs one to one.
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
from qarat.kernels import reference
from qarat.models import Model
from qarat.modules import QuantLinear, QuantProducts
from qarat.workspace import Progress

__all__ = [
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
    around: Model | None = None,
) -> Iterator[CapturedBatch]:
    """Blocks from the last to the first, and the batches of each, with gradients.

    Args:
        model: In float.
        tokens: Their windows go through it.
        objective: What is differentiated.
        progress: Called after every block, forward and backward.
        products: Whether the attention products are wanted too.
        around: The model, quantized, that the windows go through instead.
    """
    walked = around or model
    batches = tokens.batches(model.runtime.batch_tokens)
    entrances = forward_states(walked, batches, progress)
    gradients = [
        _differentiate(walked, hidden, objective, first)
        for hidden, first in zip(entrances.pop(), _offsets(batches), strict=True)
    ]
    for index in reversed(range(model.blocks)):
        weights, block = model.block(index), walked.block(index)
        inputs = entrances.pop()
        for j in range(len(batches)):
            gradients[j], captured = _backward(walked, index, block, inputs[j], gradients[j], products)
            yield CapturedBatch(index, weights, captured)
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

    def keep(name: str, module: nn.Module, operands: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if isinstance(module, QuantLinear) and torch.is_grad_enabled():
            output = _straight_through(output, nn.functional.linear(operands[0].float(), module.value.float()))
        captured.operands[name] = (operands[0].detach(),)
        captured.outputs[name] = output
        return output

    home = block.get_submodule(model.family.attention)
    quantized: QuantProducts | None = getattr(home, PRODUCTS, None)
    watch = products or quantized is not None  # quantized ones need their gradient sent through in any case
    handles = [block.get_submodule(n).register_forward_hook(partial(keep, n)) for n in model.family.projections]
    if watch:
        home.add_module(PRODUCTS, CapturingProducts(captured, quantized))
    try:
        return model.run_block(index, block, hidden)
    finally:
        for handle in handles:
            handle.remove()
        if watch:
            delattr(home, PRODUCTS)
        if quantized is not None:
            home.add_module(PRODUCTS, quantized)


class CapturingProducts(nn.Module):
    """The attention products, operands and outputs kept."""

    def __init__(self, captured: Captured, quantized: QuantProducts | None) -> None:
        """Take the place of a block's products: in float, or as the quantized ones compute them."""
        super().__init__()
        self._captured, self._quantized = captured, quantized

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Q·Kᵀ."""
        return self._keep("qk", q, k.transpose(-1, -2))

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        """Probabilities·V."""
        return self._keep("av", p, v)

    def _keep(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        self._captured.operands[name] = (left.detach(), right.detach())
        if self._quantized is None:
            output = left @ right
        else:
            scheme, operands = getattr(self._quantized, name), {"qk": "qk", "av": "pv"}[name]
            scales = [self._quantized.scales.get(operand) for operand in operands]
            rounded = reference.matmul_operands(left, right, scheme, *scales)
            output = _straight_through(rounded[0], left) @ _straight_through(rounded[1], right)
            output = output.to(left.dtype)
        self._captured.outputs[name] = output
        return output


def _straight_through(value: Tensor, source: Tensor) -> Tensor:
    """The value, with the gradient of ``source``, which has its shape."""
    return value.detach() + (source - source.detach()).to(value.dtype)


def _offsets(batches: Sequence[Tensor]) -> list[int]:
    """Index of every batch's first window."""
    offsets = [0]
    for batch in batches[:-1]:
        offsets.append(offsets[-1] + len(batch))
    return offsets
