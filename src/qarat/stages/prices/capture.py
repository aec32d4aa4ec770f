"""What metrics look at inside a block: operands and output of every site, and the gradient of the output.

Forward keeps what a backward pass needs of every block, where that fits. Where it does not, forward keeps each block's
inputs, and backward recomputes one block at a time: memory is then that of the walk, and the gradients are the same.
Where those inputs do not fit either, windows go in groups, each through the whole model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qarat.ground.runtime import Progress
from qarat.model.attention import PRODUCTS
from qarat.model.model import Model
from qarat.model.tokens import TokenSet

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
) -> Iterator[CapturedBatch]:
    """Blocks from the last to the first, and the batches of each, with gradients.

    Args:
        model: In float.
        tokens: Their windows go through it.
        objective: What is differentiated.
        progress: Called after every block, forward and backward.
        products: Whether the attention products are wanted too.
    """
    groups, first = split_batches(model, tokens, model.blocks + 1), 0
    keeps = _keeps_graphs(model, tokens)
    for number, batches in enumerate(groups):
        tell = part_of(progress, number, len(groups))
        yield from _capture_group(model, batches, first, objective, tell, keeps=keeps, products=products)
        first += sum(map(len, batches))


def _capture_group(
    model: Model,
    batches: Sequence[Tensor],
    first: int,
    objective: Objective,
    progress: Progress,
    *,
    keeps: bool,
    products: bool,
) -> Iterator[CapturedBatch]:
    """As `capture_backward`, of some batches.

    Args:
        model: In float.
        batches: (windows, length) token ids each.
        first: Index in the token set of their first window.
        objective: What is differentiated.
        progress: Called after every block, forward and backward.
        keeps: Whether forward keeps what backward needs.
        products: Whether the attention products are wanted too.
    """
    kept: defaultdict[int, list[_Graph]] = defaultdict(list)

    def run(index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        if not keeps:  # capturing all the same, so that rounding is the same
            return _run_capturing(model, index, block, hidden, Captured(), products)
        kept[index].append(_build_graph(model, index, block, hidden, products))
        return kept[index][-1].output.detach()

    entrances = forward_states(model, batches, progress, run)
    gradients = [
        _differentiate(model, hidden, objective, first + offset)
        for hidden, offset in zip(entrances.pop(), _offsets(batches), strict=True)
    ]
    for index in reversed(range(model.blocks)):
        block = model.block(index)
        inputs, graphs = entrances.pop(), kept.pop(index, [])
        for j in range(len(batches)):
            graph = graphs[j] if graphs else _build_graph(model, index, block, inputs[j], products)
            gradients[j] = _backward(graph, gradients[j])
            yield CapturedBatch(index, block, graph.captured)
        progress(STAGE, 2 * model.blocks - index, 2 * model.blocks)


def passes(model: Model, tokens: TokenSet) -> int:
    """What `capture_backward` costs, in forwards: one, a backward that counts two, and a recomputation if need be."""
    return 3 if _keeps_graphs(model, tokens) else 4


def split_batches(model: Model, tokens: TokenSet, copies: int) -> list[list[Tensor]]:
    """The batches of a token set, in groups whose hidden states fit a quarter of the memory bound; one at the least.

    Batches are cut as without groups, so that nothing rounds otherwise.

    Args:
        model: Whose runtime cuts batches and bounds memory.
        tokens: The set.
        copies: Hidden states that are held of every token at once.
    """
    per_token = copies * model.config.hidden_size * model.runtime.torch_dtype.itemsize
    room = model.memory // 4 // per_token
    groups: list[list[Tensor]] = []
    taken = 0
    for batch in tokens.batches(model.runtime.batch_tokens):
        if not groups or taken + batch.numel() > room:
            groups.append([])
            taken = 0
        groups[-1].append(batch)
        taken += batch.numel()
    return groups


def part_of(progress: Progress, number: int, groups: int) -> Progress:
    """Progress of one of several groups, as that of them all."""
    return lambda stage, done, total: progress(stage, number * total + done, groups * total)


def forward_states(
    model: Model,
    batches: Sequence[Tensor],
    progress: Progress,
    run: Callable[[int, nn.Module, Tensor], Tensor] | None = None,
) -> list[list[Tensor]]:
    """Hidden states at the entrance of every block, and behind the last, by block and batch.

    Args:
        model: In float or quantized.
        batches: (windows, length) token ids each.
        progress: Called after every block, of which a backward pass will see as many again.
        run: Runs a block; default `Model.run_block`.
    """
    run = run or model.run_block
    states = [[model.embed(batch) for batch in batches]]
    progress(STAGE, 0, 2 * model.blocks)
    with torch.no_grad():
        for index, block in model.walk():
            states.append([run(index, block, hidden) for hidden in states[-1]])
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


class _Graph(NamedTuple):
    """A block's pass that can be differentiated.

    Attributes:
        entrance: (windows, length, hidden), a leaf.
        output: The same shape.
        captured: What its sites saw; its outputs are part of the graph until `_backward`.
    """

    entrance: Tensor
    output: Tensor
    captured: Captured


def _build_graph(model: Model, index: int, block: nn.Module, hidden: Tensor, products: bool) -> _Graph:
    """Run a block with gradients.

    Args:
        model: For the arguments that blocks take.
        index: Of the block.
        block: With its weights.
        hidden: (windows, length, hidden) at the block's entrance.
        products: Whether the attention products are wanted too.
    """
    captured = Captured()
    hidden = hidden.detach().requires_grad_(True)
    with torch.enable_grad():
        return _Graph(hidden, _run_capturing(model, index, block, hidden, captured, products), captured)


def _backward(graph: _Graph, gradient: Tensor) -> Tensor:
    """Gradient with respect to a block's entrance; those of its sites' outputs go into what was captured.

    Args:
        graph: Of the block.
        gradient: Of the objective, with respect to the block's output.
    """
    captured = graph.captured
    names = list(captured.outputs)
    found = torch.autograd.grad(graph.output, [graph.entrance, *captured.outputs.values()], gradient)
    captured.gradients = dict(zip(names, found[1:], strict=True))
    captured.outputs = {n: y.detach() for n, y in captured.outputs.items()}
    return found[0]


def _keeps_graphs(model: Model, tokens: TokenSet) -> bool:
    """Whether what a backward pass needs of all blocks fits a quarter of the memory bound."""
    return _graph_bytes(model, tokens.windows.shape[1]) * tokens.windows.numel() <= model.memory // 4


def _graph_bytes(model: Model, length: int) -> int:
    """What a backward pass needs of all blocks, for each token; a bound from above.

    Args:
        model: Whose sites and dtype count.
        length: Of a window.
    """
    shapes = [site.shape for site in model.sites() if site.kind != "product"]
    # Inputs and outputs of the projections, each once more for what lies between them: norms, rotation, gate.
    linear = sum(2 * (rows + cols) for rows, cols in shapes)
    # Scores, with mask, probabilities, and those in the dtype of the values.
    attention = 4 * model.blocks * model.config.num_attention_heads * length
    return (linear + attention) * model.runtime.torch_dtype.itemsize


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
