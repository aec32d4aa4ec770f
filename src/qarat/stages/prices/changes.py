"""What schemes change at sites: the part that all metrics share.

A metric that looks at one site at a time is a score of a `SiteChange`, and is asked for it at every site, under every
scheme that fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from qarat.ground.runtime import Progress
from qarat.maths.kernels import reference
from qarat.maths.static_scales import static_operands, static_scales_of
from qarat.maths.tensors import QuantizedTensor, fake_quantize
from qarat.maths.tiles import Scales
from qarat.model.capture import PRODUCT_SITES, Captured, watched
from qarat.model.layers import QuantCache, QuantProducts
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.rounding import Merged
from qarat.stages.rounding.inputs import Calibration, round_site
from qarat.values.records.streams import ActivationStats
from qarat.values.roles import CACHES
from qarat.values.schemes import CacheScheme, LinearScheme, MatmulScheme, Scheme
from qarat.values.sites import Site

Prices = Mapping[tuple[str, str], Tensor]
"""(site, scheme's spelling) to the price in each window, (windows,) float64."""


@dataclass(frozen=True, eq=False)
class Pricing:
    """What is to be priced.

    Attributes:
        model: In float.
        tokens: The selection set.
        schemes: Each is priced at every site of its kind: projection, attention product or cache.
        stats: Behind static scales.
        calibration: For roundings that look at what a projection reads; None where no scheme has one.
        prefix: Ids of the tokens that every window begins with and that stay in float: Δy is 0 there.
        seed: Of what is drawn.
        progress: Called after every block.
        first: Index of the first window, where the tokens are part of a larger set.
    """

    model: Model
    tokens: TokenSet
    schemes: Sequence[Scheme]
    stats: ActivationStats | None
    calibration: Calibration | None
    prefix: tuple[int, ...]
    seed: int
    progress: Progress
    first: int = 0

    @property
    def attention(self) -> tuple[str, ...]:
        """Sites inside the attention that a pass has to look at."""
        sites = {"product": PRODUCT_SITES, "cache": CACHES}
        wanted = (names for kind, names in sites.items() if any(scheme.fits(kind) for scheme in self.schemes))
        return tuple(chain.from_iterable(wanted))


class BlockChanges:
    """What schemes change at the sites of one block; each weight is quantized once."""

    def __init__(self, pricing: Pricing, index: int, block: nn.Module, schemes: Sequence[Scheme] | None = None) -> None:
        """Prepare.

        Args:
            pricing: Whose model, stats and calibration count; in front of its prefix nothing is changed.
            index: Of the block.
            block: With its float weights.
            schemes: Of all that are priced, those looked at here; by default all.
        """
        self.index, self.first = index, len(pricing.prefix)
        self._block = block
        self._stats, self._calibration = pricing.stats, pricing.calibration
        self._device = pricing.model.runtime.device
        family = pricing.model.family
        self.keys = {
            site: site.name.removeprefix(f"{family.blocks}.{index}.") if site.kind == "projection" else site.leaf
            for site in pricing.model.sites()
            if site.block == index
        }
        self._schemes = tuple(dict.fromkeys(pricing.schemes if schemes is None else schemes))
        self._weights: dict[tuple[str, str], QuantizedTensor] = {}

    def pairs(self) -> Iterator[tuple[Site, Scheme]]:
        """Every site with every scheme that fits it."""
        return ((site, scheme) for site in self.keys for scheme in self._schemes if scheme.fits(site.kind))

    def linear(self, site: Site) -> nn.Linear:
        """The projection in float."""
        return cast(nn.Linear, self._block.get_submodule(self.keys[site]))

    def weight(self, site: Site, scheme: LinearScheme) -> Tensor:
        """The projection's weight as the scheme leaves it, (out, in)."""
        if scheme.weight is None:
            return self.linear(site).weight.detach()
        cached = (site.name, str(scheme.weight))
        if cached not in self._weights:
            merged = Merged.of(self._block, site.name.removesuffix(self.keys[site]), site, self.keys)
            self._weights[cached] = round_site(site, merged, scheme.weight, self._calibration)
        return self._weights[cached].dequantize()  # not kept: four bytes a weight and scheme, where its codes take one

    def output(self, site: Site, scheme: Scheme, operands: Sequence[Tensor]) -> Tensor:
        """What the site computes under a scheme from the first position on that has it, float32.

        Args:
            site: One of this block's.
            scheme: One that fits it.
            operands: Of a projection its input (windows, length, in); of a product left and right; of a cache keys or
                values. Its output is as `qarat.model.capture.Captured` has it.
        """
        # Tokens in front of `first` stay in float, so only the rows behind are computed: (windows, rows, in) of an
        # input, (windows, heads, rows, …) of a product's left operand, whose rows are queries.
        scales, rows = self._scales(site, scheme), operands[0][..., self.first :, :]
        if isinstance(scheme, MatmulScheme):
            names = [stream.rpartition(".")[2] for stream in site.streams]
            known = {name: s for name, s in zip(names, scales, strict=True) if s is not None}
            products = QuantProducts(scheme, scheme, known, self.first)
            # Kᵀ comes transposed, (windows, heads, channels, keys), as it is multiplied; the layer takes K.
            if site.leaf == "qk":
                return products.scores(rows, operands[1].transpose(-1, -2))
            return products.mix(rows, operands[1])
        if isinstance(scheme, CacheScheme):
            known = {} if scales[0] is None else {site.leaf: scales[0]}
            return torch.stack(QuantCache({site.leaf: scheme}, known).read(site.leaf, rows.float()), 1)
        return reference.linear(rows, self.weight(site, scheme), self.linear(site).bias, scheme.input, scales[0])

    def operands(self, site: Site, scheme: Scheme, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The operands of a projection or product as the scheme leaves them, float32; a weight is not among them."""
        scales = self._scales(site, scheme)
        if isinstance(scheme, MatmulScheme):
            return reference.matmul_operands(operands[0], operands[1], scheme, *scales)
        assert isinstance(scheme, LinearScheme), "what a cache keeps is its output"
        x = operands[0]
        return (x.float() if scheme.input is None else fake_quantize(x, scheme.input, scales[0]),)

    def run(self, model: Model, site: Site, scheme: Scheme, hidden: Tensor) -> Tensor:
        """Hidden states behind the block in which one site uses a scheme, all others in float; shape of ``hidden``.

        Args:
            model: For the arguments that blocks take.
            site: One of this block's.
            scheme: One that fits it; of one that changes nothing the block is left as it is.
            hidden: (windows, length, hidden) at the block's entrance.
        """

        def change(_: str, operands: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return self.output(site, scheme, operands).to(output.dtype)

        with watched(model, self._block, [] if scheme.is_float else [self.keys[site]], change):
            return model.run_block(self.index, self._block, hidden)

    def _scales(self, site: Site, scheme: Scheme) -> list[Scales | None]:
        """Static scales of the operands; None where they are chosen from what is there."""
        static = dict(static_operands(site.streams, scheme))
        scales = {name: static_scales_of(self._stats, name, by, self._device) for name, by in static.items()}
        return [scales.get(name) for name in site.streams]

    def of(self, seen: Captured) -> Iterator[SiteChange]:
        """What every scheme would change in a batch that showed this."""
        for site, scheme in self.pairs():
            key = self.keys[site]
            yield SiteChange(site, scheme, seen.operands[key], seen.outputs[key], seen.gradients.get(key), self)


@dataclass(frozen=True, eq=False)
class SiteChange:
    """One site under one scheme, in one batch.

    Attributes:
        site: The site.
        scheme: The scheme.
        operands: Of a projection its input (windows, length, in); of a product left and right; of a cache what is kept.
        output: As the model computes it, (windows, length, out), of a product (windows, heads, length, …), of a cache
            (windows, 2, heads, length, channels).
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
    """Sum over what belongs to one token: channels, a product's heads and keys, or all that is read of a cache's token.

    Args:
        change: Whose site says which.
        elements: Shape of its output.

    Returns:
        (windows, length) float64.
    """
    summed = elements.sum(-1)
    if change.site.kind != "projection":
        summed = summed.flatten(1, -2).sum(1)
    return summed.double()
