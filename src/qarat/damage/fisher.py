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
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from qarat.attention import PRODUCTS
from qarat.calibration import check_static, static_operands, static_scales_of
from qarat.data import TokenSet
from qarat.kernels import reference
from qarat.models import Model
from qarat.modules import QuantProducts
from qarat.plans import Site
from qarat.prefixes import check_prefix
from qarat.recordfiles import content_hash
from qarat.records import ActivationStats, Menu, MenuEntry
from qarat.schemes import LinearScheme, MatmulScheme, Scheme
from qarat.tensors import Scales, quantize_tensor
from qarat.workspace import Progress, no_progress

__all__ = ["METRIC", "price"]

METRIC = "fisher"


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
    fitting = [(s, scheme) for s in model.sites() for scheme in schemes if _fits(s, scheme)]
    needed = [pair for site, scheme in fitting for pair in static_operands(site.streams, scheme)]
    check_static(needed, stats, model.fingerprint, prefix)
    model.require_float("price")
    batches = tokens.batches(model.runtime.batch_tokens)
    entrances = _forward(model, batches, progress)
    gradients = [
        _draw_and_differentiate(model, hidden, seed, first)
        for hidden, first in zip(entrances.pop(), _offsets(batches), strict=True)
    ]
    sums: dict[tuple[str, str], list[Tensor]] = {}
    for index in reversed(range(model.blocks)):
        block = model.block(index)
        prices = _BlockPrices(model, index, schemes, stats, len(prefix))
        inputs = entrances.pop()
        for j in range(len(batches)):
            gradients[j], captured = _backward(model, index, block, inputs[j], gradients[j], prices.has_products)
            for key, per_window in prices.of(block, captured).items():
                sums.setdefault(key, []).append(per_window)
        progress("damage", 2 * model.blocks - index, 2 * model.blocks)
    keys = [(site.name, str(scheme)) for site in model.sites() for scheme in schemes]
    entries = [_entry(key, torch.cat(sums[key])) for key in keys if key in sums]
    provenance = model.provenance(tokens.fingerprint, tokens.convention, seed)
    return Menu(provenance, METRIC, content_hash(stats) if stats else "", tuple(entries), prefix)


def _entry(key: tuple[str, str], windows: Tensor) -> MenuEntry:
    """Mean and standard error of the damage of each window, (windows,) float64."""
    error = float(windows.std() / len(windows) ** 0.5) if len(windows) > 1 else float("nan")
    return MenuEntry(*key, float(windows.mean()), error)


def _fits(site: Site, scheme: Scheme) -> bool:
    return isinstance(scheme, MatmulScheme) == (site.kind == "product")


class _Captured:
    """What one batch showed inside a block: operands and output of every site, and the gradient of the output."""

    def __init__(self) -> None:
        self.operands: dict[str, tuple[Tensor, ...]] = {}
        self.outputs: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}


class _CapturingProducts(nn.Module):
    """The attention products in float, operands and outputs kept."""

    def __init__(self, captured: _Captured) -> None:
        super().__init__()
        self._captured = captured

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return self._keep("qk", q, k.transpose(-1, -2))

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        return self._keep("av", p, v)

    def _keep(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        output = left @ right
        self._captured.operands[name] = (left.detach(), right.detach())
        self._captured.outputs[name] = output
        return output


def _forward(model: Model, batches: Sequence[Tensor], progress: Progress) -> list[list[Tensor]]:
    """Hidden states at the entrance of every block, and behind the last, by block and batch."""
    states = [[model.embed(batch) for batch in batches]]
    progress("damage", 0, 2 * model.blocks)
    with torch.no_grad():
        for index, block in model.walk():
            states.append([model.run_block(index, block, hidden) for hidden in states[-1]])
            progress("damage", index + 1, 2 * model.blocks)
    return states


def _draw_and_differentiate(model: Model, hidden: Tensor, seed: int, first: int) -> Tensor:
    """Gradient of the drawn labels' log-probability with respect to the hidden states behind the last block.

    Args:
        model: For norm and head.
        hidden: (windows, length, hidden).
        seed: Of the draw.
        first: Index of the batch's first window: each window has a generator of its own, so that the labels do not
            depend on how windows are batched.
    """
    gradients: list[Tensor] = []
    for j, window in enumerate(hidden):
        window = window.detach().requires_grad_(True)
        with torch.enable_grad():
            log_probabilities = model.logits(window).log_softmax(-1)
        # torch's generator takes the lower 32 bits of its seed. Fibonacci hashing (Knuth, TAOCP vol. 3, 6.4) keeps the
        # windows of one seed away from those of the next.
        generator = torch.Generator().manual_seed((seed * 2654435769 + first + j) % 2**32)
        uniform = torch.rand(log_probabilities.shape, generator=generator).to(hidden.device)
        # The Gumbel trick: the largest of log p plus Gumbel noise is a draw from p.
        gumbel = -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
        labels = (log_probabilities.detach() + gumbel).argmax(-1, keepdim=True)
        (gradient,) = torch.autograd.grad(log_probabilities.gather(-1, labels).sum(), window)
        gradients.append(gradient)
    return torch.stack(gradients)


def _backward(
    model: Model, index: int, block: nn.Module, hidden: Tensor, gradient: Tensor, products: bool
) -> tuple[Tensor, _Captured]:
    """Recompute a block with gradients.

    Args:
        model: For the arguments that blocks take.
        index: Of the block.
        block: With its weights.
        hidden: (windows, length, hidden) at the block's entrance.
        gradient: Of the log-probability, with respect to the block's output; same shape.
        products: Whether the attention products are wanted too.

    Returns:
        The gradient with respect to ``hidden``, and what was captured on the way.
    """
    captured = _Captured()

    def keep(name: str, _: nn.Module, operands: tuple[Tensor, ...], output: Tensor) -> None:
        captured.operands[name] = (operands[0].detach(),)
        captured.outputs[name] = output

    handles = [block.get_submodule(n).register_forward_hook(partial(keep, n)) for n in model.family.projections]
    home = block.get_submodule(model.family.attention)
    if products:
        home.add_module(PRODUCTS, _CapturingProducts(captured))
    hidden = hidden.detach().requires_grad_(True)
    try:
        with torch.enable_grad():
            output = model.run_block(index, block, hidden)
    finally:
        for handle in handles:
            handle.remove()
        if products:
            delattr(home, PRODUCTS)
    names = list(captured.outputs)
    found = torch.autograd.grad(output, [hidden, *(captured.outputs[n] for n in names)], gradient)
    captured.gradients = dict(zip(names, found[1:], strict=True))
    captured.outputs = {n: y.detach() for n, y in captured.outputs.items()}
    return found[0], captured


class _BlockPrices:
    """The schemes under which one block's sites are priced, each weight quantized once."""

    def __init__(
        self, model: Model, index: int, schemes: Sequence[Scheme], stats: ActivationStats | None, first_token: int
    ) -> None:
        self._home = f"{model.family.blocks}.{index}."
        self._first = first_token
        self._sites = [s for s in model.sites() if s.block == index]
        self._linear = [s for s in schemes if isinstance(s, LinearScheme)]
        self._matmul = [s for s in schemes if isinstance(s, MatmulScheme)]
        self._stats = stats
        self._weights: dict[tuple[str, str], Tensor] = {}

    @property
    def has_products(self) -> bool:
        """Whether any scheme is one of attention products."""
        return bool(self._matmul)

    def of(self, block: nn.Module, captured: _Captured) -> dict[tuple[str, str], Tensor]:
        """(site, scheme) to damage of each window of a batch, (windows,) float64, nats per token."""
        prices: dict[tuple[str, str], Tensor] = {}
        for site in self._sites:
            key = site.leaf if site.kind == "product" else site.name.removeprefix(self._home)
            if key not in captured.outputs:
                continue
            for scheme in self._matmul if site.kind == "product" else self._linear:
                changed = self._output(block, site, key, scheme, captured.operands[key])
                output, gradient = (x[key][..., self._first :, :] for x in (captured.outputs, captured.gradients))
                delta = changed.to(output.dtype) - output
                along = (gradient * delta).float().sum(-1)  # over channels, or over keys
                if site.kind == "product":
                    along = along.sum(1)  # over heads
                # A mean over all tokens: those in front of the first lose nothing.
                counted = along.shape[-1] / captured.outputs[key].shape[-2]
                prices[site.name, str(scheme)] = along.double().square().mean(-1).cpu() * counted / 2
        return prices

    def _output(self, block: nn.Module, site: Site, key: str, scheme: Scheme, operands: tuple[Tensor, ...]) -> Tensor:
        """The site's output if it alone used the scheme, from the first token on that does."""
        rows = operands[0][..., self._first :, :]
        scales: dict[str, Scales] = {
            stream: static_scales_of(self._stats, stream, s) for stream, s in static_operands(site.streams, scheme)
        }
        if isinstance(scheme, MatmulScheme):
            by_operand = {stream.rpartition(".")[2]: known for stream, known in scales.items()}
            products = QuantProducts(scheme, scheme, by_operand, self._first)
            if site.leaf == "qk":
                return products.scores(rows, operands[1].transpose(-1, -2))
            return products.mix(rows, operands[1])
        linear = cast(nn.Linear, block.get_submodule(key))
        cached = (site.name, str(scheme.weight))
        if cached not in self._weights:
            weight = linear.weight.detach()
            if scheme.weight is not None:
                weight = quantize_tensor(weight.float(), scheme.weight).dequantize()
            self._weights[cached] = weight
        input_scales = scales.get(site.streams[0])
        return reference.linear(rows, self._weights[cached], linear.bias, scheme.input, input_scales)


def _offsets(batches: Sequence[Tensor]) -> list[int]:
    """Index of every batch's first window."""
    offsets = [0]
    for batch in batches[:-1]:
        offsets.append(offsets[-1] + len(batch))
    return offsets
