"""Histograms of magnitudes: a bin is what a float32's leading bits say, its exponent and four bits of its mantissa.

That makes 16 bins an octave, each 3 to 6 % wide, finer than any 8-bit step. They are not quite evenly spaced in the
logarithm, but a value's bin is found by a shift: exact, and in a quarter of the time that a logarithm takes.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODES = 1 << 12  # 8 bits of exponent, 4 of mantissa
_SHIFT = 19  # the other 19 bits of the mantissa
_LOWEST, _BEYOND = (127 - 24) << 4, (127 + 16) << 4  # the codes of 2^-24 and 2^16

EDGES = torch.cat(
    [torch.zeros(1), (torch.arange(_LOWEST, _BEYOND + 1, dtype=torch.int32) << _SHIFT).view(torch.float32)]
)
"""Edges of the bins, (bins + 1,) float32: one bin for everything below 2^-24, 16 an octave from there to 2^16."""


def count_magnitudes(values: Tensor) -> Tensor:
    """How many values have which leading bits, the sign apart.

    Args:
        values: Any shape, float32; not written to.

    Returns:
        (`CODES`,) int64 on the CPU; sums of such counts are what `bin_counts` takes.
    """
    codes = values.view(torch.int32).bitwise_and(0x7FFFFFFF).bitwise_right_shift_(_SHIFT)
    return torch.bincount(codes.flatten(), minlength=CODES).cpu()


def bin_counts(counts: Tensor) -> Tensor:
    """Counts of `count_magnitudes` per bin of `EDGES`, (bins,) int64; the last bin takes what lies beyond it too."""
    bins = counts[_LOWEST - 1 : _BEYOND].clone()
    bins[0] = counts[:_LOWEST].sum()
    bins[-1] += counts[_BEYOND:].sum()
    return bins


def median_of(bins: Tensor) -> float:
    """Geometric centre of the bin that holds the median of the values behind ``bins``; 0 if that is the first."""
    place = int((bins.cumsum(0) >= (bins.sum() + 1) // 2).nonzero()[0])
    return 0.0 if place == 0 else float((EDGES[place] * EDGES[place + 1]).sqrt())
