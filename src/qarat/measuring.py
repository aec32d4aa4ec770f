"""Measuring plans: the evaluation and conversion stages put together, here or on workers elsewhere."""

from __future__ import annotations

from qarat.conversion import WeightCache, build_block
from qarat.data import TokenSet
from qarat.evaluation.incremental import Meter
from qarat.models import Model
from qarat.records import ActivationStats

__all__ = ["make_meter"]


def make_meter(
    model: Model, tokens: TokenSet, stats: ActivationStats | None, *, keep_bytes: int | None = None
) -> Meter:
    """What measures plans of a model.

    Weights rounded once are kept as far as the runtime's bound on weights has room beside the float ones.

    Args:
        model: In float.
        tokens: The selection set.
        stats: Behind static scales; None where no plan has any.
        keep_bytes: Bound on hidden states held, as of `qarat.evaluation.incremental.Meter`.
    """
    kept = model.block_bytes() * (model.blocks if model.keeps_blocks else 1)
    cache = WeightCache(model.runtime.memory_bytes() - kept)
    return Meter(
        model,
        tokens,
        lambda index, schemes: build_block(model, index, schemes, stats, cache),
        keep_bytes=keep_bytes,
    )
