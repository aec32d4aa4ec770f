"""k-means of numbers, exactly: the centres with the least weighted squared error, for many rows at once.

In one dimension clusters are intervals of the sorted numbers, so the best first j numbers in m clusters follow from the
best first i in m − 1 (Wang & Song 2011, Ckmeans.1d.dp). The best i does not fall as j grows, so it is found for the
middle j first, and for the others between those of their neighbours (Grønlund et al. 2017, arXiv 1701.07204, section
2.2): numbers · log(numbers) steps a cluster instead of their square. There is no start that the result depends on.
"""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = 1 << 20  # numbers times clusters of the rows that are taken together; where clusters begin takes 8 bytes each
TINY = 1e-18  # of a row's whole weight: a cluster of less has none


def cluster_rows(values: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """The centres of each row, by exact weighted k-means.

    Args:
        values: (rows, n) float64, finite.
        weights: What a squared error counts, (rows, n) float64, not negative; a row of zeros counts as one of ones.
        clusters: Centres of a row.

    Returns:
        (rows, clusters) float64, ascending. Where a row has fewer different numbers that count, some centres are equal
        or lie at numbers that do not count.
    """
    rows = max(1, AT_ONCE // (values.shape[1] * clusters))
    firsts = range(0, len(values), rows)
    return torch.cat([_cluster(values[i : i + rows], weights[i : i + rows], clusters) for i in firsts])


def _cluster(values: Tensor, weights: Tensor, clusters: int) -> Tensor:
    ordered, order = values.sort(1)
    weights = weights.gather(1, order)
    whole = weights.sum(1, keepdim=True)
    weights = torch.where(whole > 0, weights / whole.clamp(min=torch.finfo(whole.dtype).tiny), 1 / values.shape[1])
    middle = (weights * ordered).sum(1, keepdim=True)
    centred = ordered - middle  # so that little is lost where a cluster's error is a difference of sums
    sums = _Sums(*(_from_zero(weights * centred**power) for power in range(3)))
    least = sums.errors_from_first()
    splits: list[Tensor] = []
    for _ in range(clusters - 1):
        best, least = _extend(sums, least)
        splits.append(best)
    return _centres(centred, sums, splits) + middle


class _Sums:
    """Sums over the first 0, 1, … n numbers of each row of weights, weighted numbers, weighted squares."""

    def __init__(self, weight: Tensor, number: Tensor, square: Tensor) -> None:
        self.weight, self.number, self.square = weight, number, square

    def errors_from_first(self) -> Tensor:
        """The error of one cluster of the first j numbers, (rows, n + 1)."""
        return self.square - self.number.square() / self.weight.clamp(min=TINY)


def _from_zero(numbers: Tensor) -> Tensor:
    return torch.nn.functional.pad(numbers.cumsum(1), (1, 0))


def _extend(sums: _Sums, least: Tensor) -> tuple[Tensor, Tensor]:
    """One cluster more: where the last one best begins, and what is then the least error, for every number of numbers.

    Args:
        sums: Of the rows.
        least: Least error of the first j numbers so far, (rows, n + 1).

    Returns:
        Both (rows, n + 1), int64 and float64.
    """
    rows, places = least.shape
    # The error of numbers i … j is square_j − square_i − (number_j − number_i)² / (weight_j − weight_i).
    begun = least - sums.square
    best = torch.zeros(rows, places, dtype=torch.int64, device=least.device)
    error = torch.zeros_like(least)
    step = 1 << (places - 1).bit_length()
    while step > 1:
        half = step // 2
        ends = torch.arange(half, places, step, device=least.device)
        low = best[:, ends - half]
        above = best[:, (ends + half).clamp(max=places - 1)]
        high = torch.where(ends + half < places, above, ends).minimum(ends)
        best[:, ends], error[:, ends] = _least_between(sums, begun, ends.expand(rows, -1), low, high)
        step = half
    return best, error


def _least_between(sums: _Sums, begun: Tensor, ends: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """For each end, the beginning from ``low`` to ``high`` of the least error, and that error; all (rows, ends)."""
    places = begun.shape[1]
    lengths = (high - low + 1).flatten()
    stops = lengths.cumsum(0)
    row = torch.arange(len(ends), device=ends.device)[:, None] * places
    first = (low + row).flatten() - (stops - lengths)
    at = first.repeat_interleave(lengths) + torch.arange(int(stops[-1]), device=ends.device)
    end = (ends + row).flatten()
    weight = sums.weight.flatten()[end].repeat_interleave(lengths) - sums.weight.flatten()[at]
    number = sums.number.flatten()[end].repeat_interleave(lengths) - sums.number.flatten()[at]
    errors = begun.flatten()[at] - number.square_() / weight.clamp_(min=TINY)
    least = torch.segment_reduce(errors, "min", lengths=lengths)
    places = (errors == least.repeat_interleave(lengths)).nonzero().squeeze(1)
    places = places[torch.searchsorted(places, stops - lengths)]  # the first of each
    best = at[places].view(ends.shape) - row
    return best, least.view(ends.shape) + sums.square.gather(1, ends)


def _centres(centred: Tensor, sums: _Sums, splits: list[Tensor]) -> Tensor:
    """Means of the clusters that the splits lead back to, less the rows' means; (rows, clusters), ascending."""
    ends = [torch.full_like(centred[:, :1], centred.shape[1], dtype=torch.int64)]
    for best in reversed(splits):
        ends.append(best.gather(1, ends[-1]))
    bounds = torch.cat([torch.zeros_like(ends[0]), *reversed(ends)], 1)
    weight, number = (part.gather(1, bounds).diff(dim=1) for part in (sums.weight, sums.number))
    means = number / weight.clamp(min=TINY)
    # A cluster that counts for nothing: its first number, as good as any.
    first = centred.gather(1, bounds[:, :-1].clamp(max=centred.shape[1] - 1))
    return torch.where(weight > TINY, means, first).sort(1).values
