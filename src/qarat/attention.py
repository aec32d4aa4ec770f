"""Attention whose two products can be seen and quantized, in every family at once.

transformers calls one registered function for attention. Ours is its own scaled-dot-product attention, to the last bit,
unless the attention module has a child called ``products``: then Q·Kᵀ and probabilities·V are computed one after the
other, with that child's `scores` and `mix`. Being a child module, it shows when the model is printed.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

__all__ = ["ATTENTION", "PRODUCTS", "Products"]

ATTENTION = "qarat"
PRODUCTS = "products"


class Products(Protocol):
    """What stands behind ``products``: the two attention products, operands (windows, heads, rows, channels)."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Q·Kᵀ, not yet scaled."""
        ...

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        """Probabilities·V."""
        ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    products: Products | None = getattr(module, PRODUCTS, None)
    if products is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    groups: int = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = products.scores(query, key) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    # The least number, not -inf: a padding token that may see nothing at all must not become NaN and spread.
    least = torch.finfo(scores.dtype).min
    if attention_mask is None:
        # The mask function leaves plain causality to the kernel; here it has to be said. The last query sees every key.
        rows, columns = scores.shape[-2:]
        allowed = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(columns - rows)
        scores = scores.masked_fill(~allowed, least)
    elif attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, least)
    else:
        scores = scores + attention_mask
    mixed = products.mix(scores.softmax(-1, dtype=torch.float32).to(value.dtype), value)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)  # type: ignore[arg-type]
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
