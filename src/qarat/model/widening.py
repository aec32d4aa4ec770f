"""Embedding and head: kept as they are stored, and in the dtype of the arithmetic only while they are used.

They are the largest matrices of most models, stored in bfloat16, and a walk needs one at its beginning and the other at
its end. In float32 throughout they would take more than the block that the walk is at.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def embedding_of(module: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Iterator[None]:
    """Let an embedding hold rows in a dtype while the context lasts; those of some tokens alone.

    Args:
        module: With a ``weight`` (vocabulary, hidden).
        tokens: Ids, any shape.
        dtype: Of the arithmetic.
    """
    stored = module.get_parameter("weight")
    if stored.dtype == dtype:
        yield
        return
    rows = tokens.unique().to(stored.device)
    weight = torch.empty(stored.shape, dtype=dtype, device=stored.device)  # a row never written to takes no memory
    weight[rows] = stored[rows].to(dtype)
    module.weight = nn.Parameter(weight, requires_grad=False)
    try:
        yield
    finally:
        module.weight = stored


def widened(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module like another, its ``weight`` in a dtype; the other itself where it has that."""
    stored = module.get_parameter("weight")
    if stored.dtype == dtype:
        return module
    wide = copy.copy(module)
    wide._parameters = {**module._parameters, "weight": nn.Parameter(stored.to(dtype), requires_grad=False)}
    return wide
