"""KL divergence, measured: of the float model from the one in which a single site uses the scheme.

This is what `fisher` predicts to second order, and what AMQ and AutoQuantize's second method rank by. It costs a
forward from the changed block to the end for every site and scheme: half a model on the average, times sites, times
schemes. Float hidden states are kept at block boundaries, on disk, and the sites of one block go on through the next
together, so that weights are brought in once a block and scheme; where memory is short, once for each group of windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.passes import STAGE, forward_states, part_of, split_batches
from qarat.model.tokens import TokenSet
from qarat.stages.prices.changes import BlockChanges, Prices, Pricing
from qarat.stages.prices.metric import Metric
from qarat.values.records.prices import NATS
from qarat.values.schemes import Scheme


def _block_forwards(model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> int:
    """A forward, and for every site and scheme another from its block on."""
    pairs = [(site, scheme) for site in model.sites() for scheme in schemes if scheme.fits(site.kind)]
    return model.blocks + sum(model.blocks - site.block for site, _ in pairs)


@torch.no_grad()
def _divergences(pricing: Pricing) -> Prices:
    """The divergence that every scheme makes at every site it fits, by window."""
    model = pricing.model
    # Of every token: the float model's in front of a block and behind the last, and one for each site of the block.
    groups = split_batches(model, pricing.tokens, 2 + len(model.sites()) // model.blocks, model.memory // 4)
    prices: dict[tuple[str, str], list[Tensor]] = {}
    for number, batches in enumerate(groups):
        for key, windows in _price_group(pricing, batches, part_of(pricing.progress, number, len(groups))):
            prices.setdefault(key, []).append(windows)
    return {key: torch.cat(windows) for key, windows in prices.items()}


def _price_group(
    pricing: Pricing, batches: Sequence[Tensor], progress: Progress
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Every site and scheme with its prices, (windows,) float64, of some batches."""
    model, schemes = pricing.model, pricing.schemes
    entrances = forward_states(model, batches, no_progress)
    float_states = list(entrances.pop())
    total = model.blocks * len(schemes)
    progress(STAGE, 0, total)
    for index in range(model.blocks):
        block, entering = model.block(index), list(entrances[index])
        for number, scheme in enumerate(schemes):
            changes = BlockChanges(pricing, index, block, [scheme])
            # Site to its batches, (windows, length, hidden) each: all sites of a block go on together, so that each of
            # the blocks behind is brought in once for all of them.
            hidden = {
                site.name: [changes.run(model, site, scheme, states) for states in entering]
                for site, _ in changes.pairs()
            }
            for later, follower in model.walk(index + 1):
                hidden = {
                    name: [model.run_block(later, follower, states) for states in batch]
                    for name, batch in hidden.items()
                }
            for name, batch in hidden.items():
                yield (name, str(scheme)), _divergence(model, float_states, batch)
            progress(STAGE, index * len(schemes) + number + 1, total)


def _divergence(model: Model, before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Mean KL divergence over the tokens of each window.

    Args:
        model: For norm and head.
        before: (windows, length, hidden) behind the last block of the float model, by batch.
        after: The same of the changed one.

    Returns:
        (windows,) float64, nats per token.
    """
    windows: list[Tensor] = []
    # One window at a time: a large vocabulary's logits would not fit for a whole batch.
    for p_states, q_states in zip(torch.cat(list(before)), torch.cat(list(after)), strict=True):
        log_p = model.logits(p_states).double().log_softmax(-1)
        log_q = model.logits(q_states).double().log_softmax(-1)
        # Σ p (log p − log q) over the vocabulary, mean over tokens; float64, as equal models leave differences of 1e-7.
        windows.append((log_p.exp() * (log_p - log_q)).sum(-1).mean().cpu())
    return torch.stack(windows)


METRIC = Metric("kl", NATS, _divergences, _block_forwards)
