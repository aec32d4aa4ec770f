"""What schemes change at sites, and from there to a menu: the part that all metrics share.

A metric that looks at one site at a time is a score of a `SiteChange`; `price_changes` asks for it at every site, under
every scheme that fits, and `make_menu` makes the mean over windows a price.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from qarat.maths.kernels import reference
from qarat.maths.static_scales import check_static, static_operands, static_scales_of
from qarat.maths.tensors import fake_quantize, quantize_tensor
from qarat.maths.tiles import Scales
from qarat.model.layers import QuantProducts
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.prices.capture import CapturedBatch
from qarat.values.records.files import content_hash
from qarat.values.records.prices import Menu, MenuEntry
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LinearScheme, MatmulScheme, Scheme
from qarat.values.sites import Site

Prices = Mapping[tuple[str, str], Tensor]
"""(site, scheme's spelling) to the price in each window, (windows,) float64."""


def check_request(
    model: Model, schemes: Sequence[Scheme], stats: ActivationStats | None, prefix: tuple[int, ...] = ()
) -> None:
    """Check that every scheme can be priced wherever it fits, before any long work.

    Args:
        model: To be priced.
        schemes: Asked for.
        stats: Behind static scales.
        prefix: Ids of the tokens in front of every window that stay in float.

    Raises:
        UserError: Static scales without stats, or with stats of another model or prefix or without a stream that is
            needed; a model that is quantized.
    """
    fitting = [(site, scheme) for site in model.sites() for scheme in schemes if fits(site, scheme)]
    needed = [pair for site, scheme in fitting for pair in static_operands(site.streams, scheme)]
    check_static(needed, stats, model.fingerprint, prefix)
    model.require_float("price")


def has_products(schemes: Sequence[Scheme]) -> bool:
    """Whether any scheme is one of attention products."""
    return any(isinstance(scheme, MatmulScheme) for scheme in schemes)


def fits(site: Site, scheme: Scheme) -> bool:
    """Whether a scheme is one of the site's kind: of projections, or of attention products."""
    return isinstance(scheme, MatmulScheme) == (site.kind == "product")


class BlockChanges:
    """What schemes change at the sites of one block; each weight is quantized once."""

    def __init__(
        self,
        model: Model,
        index: int,
        block: nn.Module,
        schemes: Sequence[Scheme],
        stats: ActivationStats | None,
        first: int = 0,
    ) -> None:
        """Prepare.

        Args:
            model: In float.
            index: Of the block.
            block: With its float weights.
            schemes: All that were asked for.
            stats: Behind static scales.
            first: Position from which on schemes count; what is in front stays in float.
        """
        self.index, self.first = index, first
        self._block = block
        self._stats = stats
        prefix = f"{model.family.blocks}.{index}."
        self.keys = {
            site: site.leaf if site.kind == "product" else site.name.removeprefix(prefix)
            for site in model.sites()
            if site.block == index
        }
        self._schemes = tuple(dict.fromkeys(schemes))
        self._weights: dict[tuple[str, str], Tensor] = {}

    def pairs(self) -> Iterator[tuple[Site, Scheme]]:
        """Every site with every scheme that fits it."""
        return ((site, scheme) for site in self.keys for scheme in self._schemes if fits(site, scheme))

    def linear(self, site: Site) -> nn.Linear:
        """The projection in float."""
        return cast(nn.Linear, self._block.get_submodule(self.keys[site]))

    def weight(self, site: Site, scheme: LinearScheme) -> Tensor:
        """The projection's weight as the scheme leaves it, (out, in)."""
        cached = (site.name, str(scheme.weight))
        if cached not in self._weights:
            weight = self.linear(site).weight.detach()
            if scheme.weight is not None:
                weight = quantize_tensor(weight.float(), scheme.weight).dequantize()
            self._weights[cached] = weight
        return self._weights[cached]

    def output(self, site: Site, scheme: Scheme, operands: Sequence[Tensor]) -> Tensor:
        """What the site computes under a scheme from the first position on that has it, float32.

        Args:
            site: One of this block's.
            scheme: One that fits it.
            operands: Of a projection its input (windows, length, in); of a product left and right.
        """
        scales, rows = self._scales(site, scheme), operands[0][..., self.first :, :]
        if isinstance(scheme, MatmulScheme):
            names = [stream.rpartition(".")[2] for stream in site.streams]
            known = {name: s for name, s in zip(names, scales, strict=True) if s is not None}
            products = QuantProducts(scheme, scheme, known, self.first)
            if site.leaf == "qk":
                return products.scores(rows, operands[1].transpose(-1, -2))
            return products.mix(rows, operands[1])
        return reference.linear(rows, self.weight(site, scheme), self.linear(site).bias, scheme.input, scales[0])

    def operands(self, site: Site, scheme: Scheme, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The operands as the scheme leaves them, float32; a projection's weight is not among them."""
        scales = self._scales(site, scheme)
        if isinstance(scheme, MatmulScheme):
            return reference.matmul_operands(operands[0], operands[1], scheme, *scales)
        x = operands[0]
        return (x.float() if scheme.input is None else fake_quantize(x, scheme.input, scales[0]),)

    def _scales(self, site: Site, scheme: Scheme) -> list[Scales | None]:
        """Static scales of the operands; None where they are chosen from what is there."""
        static = dict(static_operands(site.streams, scheme))
        return [static_scales_of(self._stats, s, static[s]) if s in static else None for s in site.streams]

    def of(self, batch: CapturedBatch) -> Iterator[SiteChange]:
        """What every scheme would change in this batch."""
        seen = batch.captured
        for site, scheme in self.pairs():
            key = self.keys[site]
            yield SiteChange(site, scheme, seen.operands[key], seen.outputs[key], seen.gradients.get(key), self)


@dataclass(frozen=True, eq=False)
class SiteChange:
    """One site under one scheme, in one batch.

    Attributes:
        site: The site.
        scheme: The scheme.
        operands: Of a projection its input (windows, length, in); of a product left and right.
        output: As the model computes it, (windows, length, out), or of a product (windows, heads, length, …).
        gradient: Of the objective with respect to the output; None after a pass without gradients.
        block: The block's weights and scales.
    """

    site: Site
    scheme: Scheme
    operands: tuple[Tensor, ...]
    output: Tensor
    gradient: Tensor | None
    block: BlockChanges

    def delta(self) -> Tensor:
        """What the scheme adds to the output; its shape and dtype."""
        changed = self.block.output(self.site, self.scheme, self.operands).to(self.output.dtype)
        difference = changed - self.output[..., self.block.first :, :]
        # Nothing is added in front of the first position that has the scheme.
        return nn.functional.pad(difference, (0, 0, self.block.first, 0)) if self.block.first else difference

    def along_gradient(self) -> Tensor:
        """The output's change times its gradient, element by element, float32."""
        assert self.gradient is not None, "this pass took no gradients"
        return (self.gradient * self.delta()).float()


def per_token(change: SiteChange, elements: Tensor) -> Tensor:
    """Sum over what belongs to one token: channels, or a product's heads and keys.

    Args:
        change: Whose site says which.
        elements: Shape of its output.

    Returns:
        (windows, length) float64.
    """
    summed = elements.sum(-1)
    if change.site.kind == "product":
        summed = summed.sum(1)
    return summed.double()


def price_changes(
    model: Model,
    schemes: Sequence[Scheme],
    stats: ActivationStats | None,
    score: Callable[[SiteChange], Tensor],
    batches: Iterable[CapturedBatch],
    first: int = 0,
) -> Prices:
    """Price every scheme at every site it fits.

    Args:
        model: In float.
        schemes: Projection schemes are priced at every projection, product schemes at every attention product.
        stats: Behind static scales.
        score: The price in each window, (windows,).
        batches: One block's after another.
        first: Position from which on schemes count; what is in front stays in float.
    """
    found: dict[tuple[str, str], list[Tensor]] = {}
    changes: BlockChanges | None = None
    for batch in batches:
        if changes is None or changes.index != batch.index:
            changes = BlockChanges(model, batch.index, batch.block, schemes, stats, first)
        for change in changes.of(batch):
            found.setdefault((change.site.name, str(change.scheme)), []).append(score(change).double().cpu())
    return {key: torch.cat(windows) for key, windows in found.items()}


def make_menu(
    model: Model,
    tokens: TokenSet,
    schemes: Sequence[Scheme],
    stats: ActivationStats | None,
    seed: int,
    prices: Prices,
    *,
    prefix: tuple[int, ...] = (),
    **naming: str,
) -> Menu:
    """The menu of these prices, in the order of sites and schemes.

    Args:
        model: In float.
        tokens: The selection set.
        schemes: As they were asked for.
        stats: Behind static scales.
        seed: Of what was drawn.
        prices: By window.
        prefix: Ids of the tokens in front of every window that stay in float.
        **naming: ``metric`` and ``unit`` of the menu.
    """
    keys = dict.fromkeys((site.name, str(scheme)) for site in model.sites() for scheme in schemes)
    entries = tuple(_entry(key, prices[key]) for key in keys if key in prices)
    provenance = model.provenance(tokens.fingerprint, tokens.convention, seed)
    return Menu(provenance, stats=content_hash(stats) if stats else "", entries=entries, prefix=prefix, **naming)


def _entry(key: tuple[str, str], windows: Tensor) -> MenuEntry:
    """Mean and standard error of the price in each window."""
    error = float(windows.std() / len(windows) ** 0.5) if len(windows) > 1 else float("nan")
    return MenuEntry(*key, float(windows.mean()), error)
