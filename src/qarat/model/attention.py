"""Attention whose two products can be seen and quantized, in every family at once.

transformers calls one registered function for attention. Ours is its own scaled-dot-product attention, to the last bit,
unless the attention module has a child called ``products``: then Q·Kᵀ and probabilities·V are computed one after the
other, with that child's `scores` and `mix`. Being a child module, it shows when the model is printed. Where a family
caps its scores softly (Gemma 2), which scaled-dot-product attention leaves out without a word, the products are always
computed one after the other, as transformers' eager attention does.

A child called ``watcher`` is shown the operands before, and changes nothing: to look at attention must not mean to
compute it by another, slower way.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "qarat"
PRODUCTS = "products"
WATCHER = "watcher"


class Products(Protocol):
    """What stands behind ``products``: the two attention products.

    q, k and v are (windows, heads, tokens, channels), p is (windows, heads, tokens, keys).
    """

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Q·Kᵀ, not yet scaled: (windows, heads, tokens, keys)."""
        ...

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        """Probabilities·V: (windows, heads, tokens, channels)."""
        ...


class AttentionWatcher(Protocol):
    """What stands behind ``watcher``."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> None:
        """See the operands; the probabilities are softmax(`capped`(scaling · Q·Kᵀ) + mask).

        Args:
            q: (windows, heads, tokens, channels).
            k: (windows, heads, keys, channels); like ``v`` repeated for every head that shares it.
            v: (windows, heads, keys, channels).
            mask: (windows, 1, tokens, keys), 0 where a token may see a key, the least number where not.
            scaling: Factor of the scores.
            softcap: Bound on the scores, which they approach softly; None for none.
        """
        ...


def transformers_attention(config: PreTrainedConfig) -> str:
    """The name of transformers' own attention that computes what a config says."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores x as c·tanh(x / c) where there is a cap c (Gemma 2, arXiv 2408.00118, section 2)."""
    return scores if softcap is None else (scores / softcap).tanh() * softcap


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    products: Products | None = getattr(module, PRODUCTS, None)
    watcher: AttentionWatcher | None = getattr(module, WATCHER, None)
    if products is None and watcher is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    groups: int = getattr(module, "num_key_value_groups", 1)
    keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
    mask = _additive(attention_mask, query, keys)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if watcher is not None:
        watcher(query, keys, values, mask, scale, softcap)
    if products is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    raw = query @ keys.transpose(-1, -2) if products is None else products.scores(query, keys)
    scores = capped(raw * scale, softcap) + mask
    probabilities = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    mixed = probabilities @ values if products is None else products.mix(probabilities, values)
    return mixed.transpose(1, 2).contiguous(), None


def _additive(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """What is added to the scores: 0 where a token may see a key, (windows, 1, tokens, keys), dtype of ``query``."""
    windows, rows, columns = query.shape[0], query.shape[-2], key.shape[-2]
    if mask is None:
        # The mask function leaves plain causality to the kernel; here it has to be said. The last query sees every key.
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
    if mask.dtype == torch.bool:
        # The least number, not -inf: a padding token that may see nothing at all must not become NaN and spread.
        least = torch.finfo(query.dtype).min
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, least)
    return mask.expand(windows, 1, rows, columns)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
