"""Local intrinsic dimension: in how many directions the points around a point lie, from distances alone."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 20


def local_dimensions(points: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Dimension around every point by maximum likelihood from its nearest neighbours (Levina & Bickel 2004, eq. 9).

    Of distances T_1 ≤ … ≤ T_k it is (k − 2) / Σ_{j<k} ln(T_k / T_j), without bias where points lie evenly. Distances of
    0 count as the smallest of float64: a point that coincides with another has next to no dimension.

    Args:
        points: (sets, points, channels), at least 4 points a set; neighbours are of the same set.
        neighbours: k; all other points where there are fewer.

    Returns:
        (sets, points) float64.

    Raises:
        ValueError: Fewer than 4 points.
    """
    k = min(neighbours, points.shape[1] - 1)
    if k < 3:
        raise ValueError(f"{points.shape[1]} points: a dimension needs 3 neighbours, so 4 points at the least")
    near = [_nearest(each.double(), k) for each in points]
    logs = torch.stack(near).clamp_(min=torch.finfo(torch.float64).tiny).log_()
    spread = (logs[..., -1:] - logs[..., :-1]).sum(-1)
    return torch.where(spread > 0, (k - 2) / spread, torch.inf)


def _nearest(points: Tensor, k: int) -> Tensor:
    """Distances from every point to its k nearest others, ascending, (points, k)."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf).topk(k, largest=False).values
