"""Int8 projections with integer arithmetic, through `torch._int_mm`.

Exact until the scales are applied: products are summed in int32. Where scales are constant along the reduction axis
(one per output channel, one per token) they factor out of the sum, which is why groups are not supported here.

CPU only: there `_int_mm` takes any shape. CUDA asks for multiples of 8 and more than 16 rows, and nobody has tested the
padding that would need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qarat.maths.rounding import round_
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales, as_matrices
from qarat.values.formats import FORMATS
from qarat.values.schemes import Granularity, TensorScheme

_ALONG_REDUCTION = (Granularity(), Granularity(1, None))
MAX_INNER = (2**31 - 1) // (128 * 128)  # more products of −128 · −128 than this could overflow the int32 sum


def supports(weight: TensorScheme | None, input: TensorScheme | None, device: torch.device) -> bool:
    """Symmetric int8 on both sides: weight per tensor or channel, input per tensor or token; on a CPU."""
    return device.type == "cpu" and all(
        s is not None
        and s.format == "int8"
        and s.symmetric
        and s.outliers is None
        and s.granularity in _ALONG_REDUCTION
        for s in (weight, input)
    )


@torch.no_grad()
def linear(
    x: Tensor,
    weight: QuantizedTensor | Tensor,
    bias: Tensor | None,
    input_scheme: TensorScheme | None,
    input_scales: Scales | None,
) -> Tensor:
    """`qarat.maths.kernels.reference.linear`, for the schemes that `supports` names; same arguments.

    Raises:
        ValueError: Schemes it does not support, a static input scheme without scales, or too many input features for
            the int32 sum.
    """
    if not isinstance(weight, QuantizedTensor) or not supports(weight.scheme, input_scheme, x.device):
        raise ValueError("the int8 kernel computes symmetric int8 weights and inputs, on a CPU; use kernels.choose")
    assert input_scheme is not None
    if x.shape[-1] > MAX_INNER:
        raise ValueError(f"{x.shape[-1]} input features could overflow an int32 sum; the most is {MAX_INNER}")
    if input_scales is None:
        if input_scheme.static:
            raise ValueError("a static input scheme needs its scales")
        input_scales = choose_scale(x, input_scheme)
    matrices = as_matrices(x)
    codes = round_(matrices / input_scales.effective, FORMATS["int8"])
    has_nan = codes.sum(-1).isnan()  # (batch, rows); an int8 cannot say it
    sums = torch._int_mm(codes.flatten(0, 1).to(torch.int8), _int8_codes(weight).t())  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    y = sums.float().view(*matrices.shape[:2], -1)
    y.mul_(input_scales.effective).mul_(weight.scales.effective.view(-1))
    if bias is not None:
        y.add_(bias.float())
    return y.masked_fill_(has_nan.unsqueeze(-1), torch.nan).view(*x.shape[:-1], -1)


def _int8_codes(weight: QuantizedTensor) -> Tensor:
    """(out, in) int8; index 0 is −128, so flipping an index's highest bit gives its two's complement."""
    return weight.codes.bitwise_xor(0x80).view(torch.int8)
