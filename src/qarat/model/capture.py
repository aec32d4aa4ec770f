"""What metrics look at inside a block: operands and output of every site, and the gradient of the output."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qarat.model.attention import CACHE, PRODUCTS
from qarat.model.model import Model
from qarat.values.roles import CACHES, Role

PRODUCT_SITES = ("qk", "av")
_WINDOW = 512  # tokens of the longest windows, where nobody asks for others

See = Callable[[str, tuple[Tensor, ...], Tensor], Tensor]
"""Shown a site's name within its block, its operands and its output; gives the output that the block goes on with."""


@dataclass
class Captured:
    """What one batch showed inside a block, by the sites' names within it.

    Attributes:
        operands: Of a projection its input, (windows, length, in); of a product left and right; of a cache the keys or
            values, (windows, heads, length, channels).
        outputs: As the block computed them. A cache puts out two things, what later tokens read and what a token reads
            of itself: (windows, 2, heads, length, channels).
        gradients: Of the objective, with respect to the outputs; empty after a pass without gradients.
    """

    operands: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


class Graph(NamedTuple):
    """A block's pass that can be differentiated.

    Attributes:
        entrance: (windows, length, hidden), a leaf.
        output: The same shape.
        captured: What its sites saw; its outputs are part of the graph until `differentiate_block`.
    """

    entrance: Tensor
    output: Tensor
    captured: Captured


def build_graph(model: Model, index: int, block: nn.Module, hidden: Tensor, attention: Sequence[str]) -> Graph:
    """Run a block with gradients; arguments as `run_capturing`."""
    # Cut off from the blocks before: each block's graph begins at a leaf of its own, so that one can be freed alone.
    hidden = hidden.detach().requires_grad_(True)
    with torch.enable_grad():
        return Graph(hidden, *run_capturing(model, index, block, hidden, attention))


def differentiate_block(graph: Graph, gradient: Tensor) -> Tensor:
    """Gradient with respect to a block's entrance; those of its sites' outputs go into what was captured.

    Args:
        graph: Of the block.
        gradient: Of the objective, with respect to the block's output; (windows, length, hidden) both.
    """
    captured = graph.captured
    # One call for the entrance and all sites: the graph is gone through once.
    entrance, *sites = torch.autograd.grad(graph.output, [graph.entrance, *captured.outputs.values()], gradient)
    captured.gradients = dict(zip(captured.outputs, sites, strict=True))
    captured.outputs = {name: output.detach() for name, output in captured.outputs.items()}
    return entrance


def graph_bytes(model: Model, length: int) -> int:
    """What a backward pass needs of all blocks, for each token of a window of that length; a bound from above."""
    shapes = [site.shape for site in model.sites() if site.kind == "projection"]
    # Inputs and outputs of the projections, each once more for what lies between them: norms, rotation, gate.
    linear = sum(2 * (rows + cols) for rows, cols in shapes)
    # Scores, with mask, probabilities, and those in the dtype of the values.
    attention = 4 * model.blocks * model.config.num_attention_heads * length
    return (linear + attention) * model.runtime.torch_dtype.itemsize


def block_work(model: Model, tokens: int) -> int:
    """What going through one block takes at the most: reading, rounding, differentiating.

    Args:
        model: In float or quantized.
        tokens: That go through it at once, in windows of no more than `_WINDOW`.
    """
    projections = [site for site in model.sites() if site.block == 0 and site.kind == "projection"]
    weights, largest = sum(site.parameters for site in projections), max(site.parameters for site in projections)
    size = model.runtime.torch_dtype.itemsize
    # The weights and their codes; of one matrix at a time what codes stand for, and what rounding leaves on its way.
    between = graph_bytes(model, min(model.length, _WINDOW)) // model.blocks
    return weights * (size + 1) + 2 * 4 * largest + between * tokens


def run_capturing(
    model: Model, index: int, block: nn.Module, hidden: Tensor, attention: Sequence[str]
) -> tuple[Tensor, Captured]:
    """Hidden states behind a block, and what its sites see and compute.

    Args:
        model: For the arguments that blocks take.
        index: Of the block.
        block: With its weights.
        hidden: (windows, length, hidden) at the block's entrance.
        attention: Sites inside the attention that are wanted too: of its products, of its cache.
    """
    captured = Captured()

    def keep(name: str, operands: tuple[Tensor, ...], output: Tensor) -> Tensor:
        captured.operands[name] = tuple(operand.detach() for operand in operands)
        captured.outputs[name] = output
        return output

    with watched(model, block, (*model.family.projections, *attention), keep):
        return model.run_block(index, block, hidden), captured


@contextmanager
def watched(model: Model, block: nn.Module, names: Sequence[str], see: See) -> Iterator[None]:
    """Let a function see sites of a float block, and replace what they put out, while the context lasts.

    Args:
        model: For its family.
        block: With its weights.
        names: Of sites within the block. With products or caches among them, attention is computed step by step;
            without any, by the fused kernel.
        see: It.
    """

    def hook(name: str, _: nn.Module, operands: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return see(name, operands, output)

    children = {PRODUCTS: WatchedProducts, CACHE: WatchedCache}
    inside = {PRODUCTS: {*names} & {*PRODUCT_SITES}, CACHE: {*names} & {*CACHES}}
    home = block.get_submodule(model.family.attention)
    projections = [name for name in names if name not in (*PRODUCT_SITES, *CACHES)]
    handles = [block.get_submodule(name).register_forward_hook(partial(hook, name)) for name in projections]
    for child, wanted in inside.items():
        if wanted:
            home.add_module(child, children[child](wanted, see))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for child, wanted in inside.items():
            if wanted:
                delattr(home, child)


class WatchedProducts(nn.Module):
    """The attention products in float, shown to a function (protocol `qarat.model.attention.Products`)."""

    def __init__(self, names: Collection[str], see: See) -> None:
        """Keep both."""
        super().__init__()
        self._names, self._see = names, see

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Q·Kᵀ."""
        return self._multiply("qk", q, k.transpose(-1, -2))

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        """Probabilities·V."""
        return self._multiply("av", p, v)

    def _multiply(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        output = left @ right
        return self._see(name, (left, right), output) if name in self._names else output


class WatchedCache(nn.Module):
    """Keys and values in float, shown to a function (protocol `qarat.model.attention.KeyValueCache`).

    What later tokens read and what a token reads of itself are one output, so that its gradient tells them apart.
    """

    def __init__(self, names: Collection[str], see: See) -> None:
        """Keep both."""
        super().__init__()
        self._names, self._see = names, see

    def keys(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, position embeddings in them."""
        return self._show(Role.KEY_CACHE, k)

    def values(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Values."""
        return self._show(Role.VALUE_CACHE, v)

    def _show(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        if name not in self._names:
            return x, x
        read, own = self._see(name, (x,), torch.stack([x, x], 1)).unbind(1)
        return read, own
