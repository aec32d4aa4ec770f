"""Splitting channels: which of an activation's channels are worth a copy, where there is room for so many more.

A channel kept k times, each copy 1/k of it, reaches 1/k as far, and so does not decide the scale that all share
(Zhao et al. 2019, arXiv 1901.09504, who halve outlier channels). k is a power of two: dividing by it is exact in binary
floating point.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor


def choose_copies(reach: Tensor, extra: int) -> Tensor:
    """How often to keep each channel, so that the largest reach is the least there can be.

    Greedy, and still the best: whatever lowers the largest must double the copies of the channel that has it. Where
    those do not fit, nothing is left to gain.

    Args:
        reach: (channels,), largest magnitude of each.
        extra: How many channels there may be beyond those.

    Returns:
        (channels,) int64, powers of two that sum up to at most ``channels + extra``.
    """
    copies = [1] * len(reach)
    # The first of equals comes first.
    queue = [(-value, channel) for channel, value in enumerate(reach.cpu().numpy().tolist())]
    heapq.heapify(queue)
    while queue:
        largest, channel = queue[0]
        if largest == 0 or copies[channel] > extra:
            break
        extra -= copies[channel]
        copies[channel] *= 2
        heapq.heapreplace(queue, (largest / 2, channel))
    return torch.tensor(copies, dtype=torch.int64)
