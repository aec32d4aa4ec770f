"""Clipping: what a tile's scale reaches where it is not to reach the tile's extremes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qarat.maths.tiles import to_tiles
from qarat.values.formats import NumberFormat
from qarat.values.schemes import TensorScheme

STEPS_PER_OCTAVE = 16  # of the first search for the best step; the error of a table of floats has several valleys
REFINEMENTS = 40  # golden sections of the valley that was found: 1e-8 of an octave


def percentile(matrices: Tensor, scheme: TensorScheme) -> Tensor:
    """Percentile of the magnitudes of each tile, linear between neighbouring ranks.

    Args:
        matrices: (batch, rows, cols) float32.
        scheme: Whose granularity and percentile count.

    Returns:
        (batch, tall, 1, wide, 1) float32.
    """
    magnitudes = to_tiles(matrices.abs(), scheme.granularity).transpose(2, 3).flatten(3)
    # Ranks count from the top, where the zeros that pad a short last tile do not shift them.
    rank = (_elements(matrices, scheme) - 1) * (1 - scheme.percentile / 100)
    upper, lower = rank.floor(), rank.ceil()
    top = magnitudes.topk(int(lower.max()) + 1, dim=-1).values
    at_upper, at_lower = (top.gather(-1, r.long().expand(len(top), -1, -1).unsqueeze(-1)) for r in (upper, lower))
    bound = torch.lerp(at_upper, at_lower, (rank - upper).float().unsqueeze(-1))
    return bound.unsqueeze(2)


def typical(matrices: Tensor, scheme: TensorScheme) -> Tensor:
    """The clip width that errs least on a Gaussian of each tile's own width: σ of its values about 0, times `widths`.

    That an optimal width exists, and that few bits suffer from a wide one, is shown for typical weights by Kinoshita
    and Kabashima's replica analysis (arXiv 2401.17269). No value of the tile is looked at beside its σ.

    Args:
        matrices: (batch, rows, cols) float32.
        scheme: Whose granularity and format count.

    Returns:
        (batch, tall, 1, wide, 1) float32.
    """
    squares = to_tiles(matrices, scheme.granularity).square().sum((2, 4), dtype=torch.float64)
    sigma = (squares / _elements(matrices, scheme)).sqrt().float()
    return (sigma * gaussian_width(scheme.number_format)).unsqueeze(2).unsqueeze(-1)


@functools.lru_cache(maxsize=64)
def gaussian_width(fmt: NumberFormat) -> float:
    """What the largest value of a format should stand for, in σ of a Gaussian that it is to round with least error."""
    return fmt.largest * gaussian_step(fmt.values)


def gaussian_step(values: Sequence[float]) -> float:
    """The factor of a table, in σ, under which it rounds a Gaussian with the least mean squared error.

    Of 2^b evenly spaced values about 0 these are Lloyd's and Max's uniform steps: 0.9957, 0.5860, 0.3352 at 2, 3, 4
    bits (Max, IRE Transactions on Information Theory 6, 1960, table II).

    Args:
        values: Ascending; the middle of a table that has no 0 counts as its 0.
    """
    largest = max(-values[0], values[-1])
    octaves = range(-2 * STEPS_PER_OCTAVE, 4 * STEPS_PER_OCTAVE)  # the largest value at ¼ to 16 σ
    place = min(octaves, key=lambda i: gaussian_error(values, 2 ** (i / STEPS_PER_OCTAVE) / largest))
    low, high = (place - 1) / STEPS_PER_OCTAVE, (place + 1) / STEPS_PER_OCTAVE
    inner = (math.sqrt(5) - 1) / 2
    for _ in range(REFINEMENTS):
        left, right = high - inner * (high - low), low + inner * (high - low)
        if gaussian_error(values, 2**left / largest) < gaussian_error(values, 2**right / largest):
            high = right
        else:
            low = left
    return 2 ** ((low + high) / 2) / largest


def gaussian_error(values: Sequence[float], step: float) -> float:
    """Mean squared error of rounding a Gaussian of σ = 1 to the nearest of a table's values times a step."""
    v = torch.tensor(values, dtype=torch.float64) * step
    edges = torch.cat([v.new_tensor([-torch.inf]), (v[1:] + v[:-1]) / 2, v.new_tensor([torch.inf])])
    below = (1 + torch.erf(edges / math.sqrt(2))) / 2
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    at_edges = torch.where(density > 0, edges * density, 0.0)
    # ∫ (x − v)² φ over a cell, from ∫ φ = Φ, ∫ x φ = −φ, ∫ x² φ = Φ − x φ.
    cells = below.diff() * (1 + v.square()) - at_edges.diff() + 2 * v * density.diff()
    return float(cells.sum())


def _elements(matrices: Tensor, scheme: TensorScheme) -> Tensor:
    """How many values each tile has, padding left out, (1, tall, wide) float64."""
    ones = torch.ones(1, *matrices.shape[1:], device=matrices.device)
    return to_tiles(ones, scheme.granularity).sum((2, 4), dtype=torch.float64)
