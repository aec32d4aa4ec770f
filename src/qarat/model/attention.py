"""Attention whose two products can be seen and quantized, in every family at once.

transformers calls one registered function for attention. Ours is its own scaled-dot-product attention, to the last bit,
unless the attention module has a child called ``products``: then Q·Kᵀ and probabilities·V are computed one after the
other, with that child's `scores` and `mix`. Being a child module, it shows when the model is printed. Where a family
caps its scores softly (Gemma 2), which scaled-dot-product attention leaves out without a word, the products are always
computed one after the other, as transformers' eager attention does.

A child called ``kv_cache`` says what attention reads in place of keys and values: what later tokens read, and what a
token reads of itself. Whole windows and generation token by token then come to the same, since both ask it for all keys
there are, those of earlier steps among them; transformers' own cache holds them in float.

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
CACHE = "kv_cache"
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


class KeyValueCache(Protocol):
    """What stands behind ``kv_cache``: what is read in place of keys and values.

    Of each, (windows, key heads, tokens, channels), what later tokens read and what a token reads of itself, shapes as
    given; one tensor where both are alike.
    """

    def keys(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Of the keys, position embeddings in them."""
        ...

    def values(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of the values."""
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
    cache: KeyValueCache | None = getattr(module, CACHE, None)
    own_key, own_value = key, value
    if cache is not None:
        (key, own_key), (value, own_value) = cache.keys(key), cache.values(value)
    fused = products is None and softcap is None and own_key is key and own_value is value
    if fused and watcher is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    groups: int = getattr(module, "num_key_value_groups", 1)
    keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
    mask = _additive(attention_mask, query, keys)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if watcher is not None:
        watcher(query, keys, values, mask, scale, softcap)
    if fused:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    raw = query @ keys.transpose(-1, -2) if products is None else products.scores(query, keys)
    # The last query and the last key are one token.
    own = torch.zeros(raw.shape[-2:], dtype=torch.bool, device=raw.device)
    own.diagonal(raw.shape[-1] - raw.shape[-2]).fill_(True)
    if own_key is not key:
        raw = raw.where(~own, _with_itself(query, repeat_kv(own_key, groups)))
    scores = capped(raw * scale, softcap) + mask
    probabilities = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    others = probabilities if own_value is value else probabilities.masked_fill(own, 0)
    mixed = others @ values if products is None else products.mix(others, values)
    if own_value is not value:
        share = probabilities.diagonal(raw.shape[-1] - raw.shape[-2], -2, -1).unsqueeze(-1)
        mixed = mixed + share * repeat_kv(own_value, groups)[..., -raw.shape[-2] :, :]
    return mixed.transpose(1, 2).contiguous(), None


def _with_itself(query: Tensor, own_keys: Tensor) -> Tensor:
    """Of every query the product with its own key, (windows, heads, tokens, 1)."""
    return (query.float() * own_keys[..., -query.shape[-2] :, :].float()).sum(-1, keepdim=True).to(query.dtype)


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
