"""`int8` for CPUs whose INT8 products saturate: inputs of 7 bits, and what is beyond them by itself.

Without VNNI, u8 · s8 + u8 · s8 is added in 16 bits, which hold 2 · 127 · 128 but not 2 · 255 · 128. So a code of 8 bits
is the sum of its nearest in −64 … 63 and a rest. The first are multiplied as in `int8`, shifted by 64 only. The rest is
nothing at most places: at 0.1 to 0.8 % of the inputs that a static scale was made for, at some 6 % where each token has
one of its own. Those few are rows of the weight, gathered and added (`embedding_bag`), which beats a second product up
to some 8 %. Everything is exact: integers below 2^24, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from qarat.maths.kernels import int8
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.values.schemes import TensorScheme

SPARSE = 0.08
"""Share of the inputs beyond 7 bits from which on a second product takes less time than a sum for each."""

MOST = 2048
"""Of a row: so many times 64 · 128 is 2^24."""


def why_not(
    weight: TensorScheme | None, input: TensorScheme | None, shape: tuple[int, int], device: torch.device
) -> str:
    """As `int8`, on a CPU."""
    if reason := int8.refusal(weight, input, shape):
        return reason
    if device.type != "cpu":
        return "is for CPUs"
    return "" if int8.is_exact(product, "cpu") else "integer sums of 7 bits on this CPU are not exact"


@torch.no_grad()
def linear(
    x: Tensor,
    weight: QuantizedTensor | Tensor,
    bias: Tensor | None,
    input_scheme: TensorScheme | None,
    input_scales: Scales | None,
) -> Tensor:
    """As `qarat.maths.kernels.int8.linear`."""
    return int8.by_product(product, x, weight, bias, input_scheme, input_scales)


def product(codes: Tensor, weight: Tensor) -> Tensor:
    """The `qarat.maths.kernels.int8.Product` of this kernel."""
    low = codes.clamp(-64, 63)
    rest = codes - low  # −64 … 64
    sums = int8.onednn(low, weight, 64)
    places = rest.flatten().nonzero().squeeze(1)
    if not len(places):
        return sums
    rows, inner = codes.shape
    starts = torch.searchsorted(places, torch.arange(rows + 1) * inner)
    if len(places) > SPARSE * rest.numel() or int(starts.diff().max()) > MOST:
        return sums.add_(int8.onednn(rest, weight, 64))
    values = rest.flatten()[places].float()
    table = weight.t().float().contiguous()
    return sums.add_(
        embedding_bag(places % inner, table, starts, mode="sum", per_sample_weights=values, include_last_offset=True)
    )
