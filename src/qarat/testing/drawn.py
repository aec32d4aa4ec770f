"""What tests draw: numbers and tokens from a seed; and a plan of one scheme."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.values.plans import Plan, assign


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian numbers of that shape, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(role: str = "calibration", seed: int = 5) -> TokenSet:
    """Six windows of 24 tokens, each of a text of its own; ids as a tiny model has them."""
    ids = torch.randint(2, 98, (6, 24), generator=torch.Generator().manual_seed(seed))
    sources = tuple(f"text {number}" for number in range(6))
    return TokenSet(role, "windows-24", ids, sources, (str(seed) * 64,), ("text",))


def block_of(model: Model, index: int) -> Any:
    """A block whose submodules may be asked for by name, whatever its family."""
    return model.block(index)


def plan_of(model: Model, low: str) -> Plan:
    """Every projection under one scheme, by its spelling."""
    return assign(model.fingerprint, model.source_bits, model.sites(), low)
