"""Sites: the places in a model where precision is chosen."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["projection", "product", "cache"]


class Site(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place where precision is chosen.

    Attributes:
        name: Full name in the model: ``model.layers.1.mlp.down_proj``, or ``model.layers.1.self_attn.qk``.
        block: Index of the decoder layer.
        kind: ``projection`` (weight and input), ``product`` (an attention product) or ``cache`` (keys or values as they
            are kept for later tokens); only the first has parameters.
        streams: The stream it reads; of a product, left and right.
        shape: ``(out, in)`` of a projection's weight; empty for others.
        tie: Sites of one block with the same word must share a scheme where an engine fuses them; empty = alone.
        has_bias: Whether a bias, always kept in float, goes with the weight.
        width: Channels of a product over all its (query) heads, of a cache over all key heads: heads × head channels; 0
            for a projection.
    """

    name: str
    block: int
    kind: Kind
    streams: tuple[str, ...]
    shape: tuple[int, ...] = ()
    tie: str = ""
    has_bias: bool = False
    width: int = 0

    @property
    def parameters(self) -> int:
        """Weights of the site; only projections have any."""
        return self.shape[0] * self.shape[1] if self.shape else 0

    def macs(self, length: int) -> int:
        """Multiply-accumulates of one window.

        Tokens × out × in of a projection, tokens² × width of a product: the whole square, as attention is computed and
        counted elsewhere, though a causal mask leaves half of it without effect. A cache multiplies nothing.

        Args:
            length: Tokens of the window.
        """
        return length**2 * self.width if self.kind == "product" else length * self.parameters

    @property
    def leaf(self) -> str:
        """Last part of the name: ``down_proj``, ``qk``."""
        return self.name.rpartition(".")[2]


def short_name(name: str) -> str:
    """``1.down`` for ``model.layers.1.mlp.down_proj``: block and projection, for tables."""
    block = next((part for part in name.split(".") if part.isdigit()), "?")
    return f"{block}.{name.rpartition('.')[2].removesuffix('_proj')}"
