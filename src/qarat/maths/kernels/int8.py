"""Projections in integers of up to 8 bits: oneDNN's product on a CPU, `torch._int_mm` on CUDA.

Exact until the scales are applied: products are summed in int32. Where scales are constant along the reduction axis
(one per output channel, one per token) they factor out of the sum, which is why groups are not supported here. Zero
points add terms of rank one, and the columns that LLM.int8() keeps in float a small product in float.

oneDNN multiplies unsigned inputs by signed weights, so codes are shifted by 128, which it takes out of the sums again.
On an x86 CPU without VNNI it first adds two such products in 16 bits, which saturate: there this kernel refuses, and
`int8_split` computes. The CUDA path has never been run; it, too, is asked whether its sums are right.

Weights stay as they are kept, a byte each. oneDNN wants them in an order of its own, and making that takes as long as
a product of some 1000 tokens (576 × 1536, AVX-512 VNNI: 4.9 and 3.8 ms). Kept it is for the last few weights alone, so
that a walk, which sends all windows through one block before the next, makes it once, and holds no second copy of a
model. Who goes through all blocks for every token makes it anew each time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from msgspec import structs
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.weak import WeakIdKeyDictionary

from qarat.maths.kernels import reference
from qarat.maths.rounding import round_
from qarat.maths.tensors import QuantizedTensor, scales_for
from qarat.maths.tiles import Scales, as_matrices
from qarat.values.schemes import Granularity, TensorScheme

Product = Callable[[Tensor, Tensor], Tensor]
"""(rows, in) int8 by (out, in) int8: the sums, (rows, out) float32, exact up to 2^24 and rounded beyond."""

MAX_INNER = (2**31 - 1) // (255 * 128)  # more products of 255 · −128 than this could overflow the int32 sum

KEPT = 8
"""Weights whose integers and whose order in oneDNN are kept: a block has seven."""

_ALONG_REDUCTION = (Granularity(), Granularity(1, None))


def why_not(
    weight: TensorScheme | None, input: TensorScheme | None, shape: tuple[int, int], device: torch.device
) -> str:
    """Integers on both sides, one scale a tensor, channel or token; where the product of this machine is exact."""
    if reason := refusal(weight, input, shape):
        return reason
    return "" if is_exact(product, device.type) else f"integer sums on this {device.type} device are not exact"


def refusal(weight: TensorScheme | None, input: TensorScheme | None, shape: tuple[int, int]) -> str:
    """Why a projection cannot be computed in int8, whatever computes; empty if it can."""
    for scheme in (weight, input):
        if scheme is None or not scheme.number_format.is_integer or scheme.granularity not in _ALONG_REDUCTION:
            return "computes integers, weights with a scale a tensor or channel, inputs with one a tensor or token"
    if weight is not None and weight.sparse is not None:
        return "computes no sparse part of a weight"
    return f"{shape[1]} input features could overflow an int32 sum" if shape[1] > MAX_INNER else ""


@torch.no_grad()
def linear(
    x: Tensor,
    weight: QuantizedTensor | Tensor,
    bias: Tensor | None,
    input_scheme: TensorScheme | None,
    input_scales: Scales | None,
) -> Tensor:
    """`qarat.maths.kernels.reference.linear`, for what `refusal` lets pass; same arguments.

    Raises:
        ValueError: Schemes or a shape it does not compute, or a static input scheme without scales.
    """
    return by_product(product, x, weight, bias, input_scheme, input_scales)


def product(codes: Tensor, weight: Tensor) -> Tensor:
    """The `Product` of this kernel."""
    return onednn(codes, weight, 128) if codes.device.type == "cpu" else int_mm(codes, weight)


def onednn(codes: Tensor, weight: Tensor, shift: int) -> Tensor:
    """A `Product` on a CPU; codes from −``shift`` on, so that shifted by it they are unsigned."""
    shifted = codes.view(torch.uint8) + shift  # modulo 256
    packed = _kept(_packed, weight, lambda: torch.ops.onednn.qlinear_prepack(weight, list(codes.shape)))
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        shifted, 1.0, shift, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


_integers, _packed = WeakIdKeyDictionary(), WeakIdKeyDictionary()  # by codes; by integers. They go with their keys.


def _kept(cache: WeakIdKeyDictionary, key: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """What is made of a tensor, as long as it is among the last ones."""
    if key not in cache:
        while len(cache) >= KEPT:
            oldest: Any = next(iter(cast(Any, cache)))
            del cache[oldest]
        cache[key] = make()
    return cast(Tensor, cache[key])


def int_mm(codes: Tensor, weight: Tensor) -> Tensor:
    """A `Product` that CUDA has; it asks for more than 16 rows, and for multiples of 8 else."""
    (rows, inner), out = codes.shape, len(weight)
    codes = pad(codes, (0, -inner % 8, 0, max(0, 17 - rows)))
    weight = pad(weight, (0, -inner % 8, 0, -out % 8))
    return torch._int_mm(codes, weight.t())[:rows, :out].float()  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


@functools.cache
def is_exact(of: Product, device: str) -> bool:
    """Whether a product gets the sums of extreme codes right on a device: asked once, by value."""
    corners = torch.tensor([[-128, -128], [127, 127], [127, -128], [-64, 63], [64, -65], [0, 1]], dtype=torch.int8)
    codes = corners.repeat(6, 256)  # sums stay below 2^24, which float32 holds exactly
    expected = codes.double() @ codes.double().T
    try:
        return torch.equal(of(codes.to(device), codes.to(device)).double().cpu(), expected)
    except (AttributeError, RuntimeError):  # a torch without the operator; a device that refuses it
        return False


def by_product(
    of: Product,
    x: Tensor,
    weight: QuantizedTensor | Tensor,
    bias: Tensor | None,
    scheme: TensorScheme | None,
    scales: Scales | None,
) -> Tensor:
    """`linear` by a product of one's own."""
    if not isinstance(weight, QuantizedTensor) or scheme is None:
        raise ValueError("the int8 kernels compute quantized weights and inputs; use kernels.choose")
    if reason := refusal(weight.scheme, scheme, (weight.codes.shape[0], weight.codes.shape[1])):
        raise ValueError(f"{weight.scheme.spell('w')} {scheme.spell('a')}: {reason}; use kernels.choose")
    if scheme.outliers is not None:
        return _beside_outliers(of, x, weight, bias, scheme, scheme.outliers)
    scales = scales_for(x, scheme, scales)
    matrices = as_matrices(x)
    units = matrices / scales.effective
    rounded = round_(units if scales.zero_point is None else units.add_(scales.zero_point), scheme.number_format)
    if rounded.amax().isnan():  # which an integer cannot say
        return reference.linear(x, weight, bias, scheme, scales)
    codes = rounded.flatten(0, 1).to(torch.int8)
    integers = _kept(_integers, weight.codes, lambda: integers_of(weight))
    y = of(codes, integers).view(*matrices.shape[:2], -1)
    _take_zero_points_out_(y, codes, integers, scales.zero_point, weight.scales.zero_point)
    y.mul_(scales.effective).mul_(weight.scales.effective.view(-1))
    if bias is not None:
        y.add_(bias.float())
    return y.view(*x.shape[:-1], -1)


def integers_of(weight: QuantizedTensor) -> Tensor:
    """(out, in) int8: what the codes mean, index plus the least of the table, modulo 256."""
    return weight.codes.view(torch.int8) + int(weight.scheme.number_format.values[0])


def _take_zero_points_out_(
    sums: Tensor, codes: Tensor, integers: Tensor, zero: Tensor | None, weight_zero: Tensor | None
) -> None:
    """Σ (c − z)(w − v) of Σ c·w, in place: less z · Σ (w − v), less v · Σ c."""
    if zero is not None:
        totals = integers.sum(1, dtype=torch.int32).float()
        totals = totals if weight_zero is None else totals - integers.shape[1] * weight_zero.view(-1)
        sums.sub_(zero * totals)
    if weight_zero is not None:
        totals = codes.sum(1, dtype=torch.int32).float().view(*sums.shape[:2], 1)
        sums.sub_(totals * weight_zero.view(-1))


def _beside_outliers(
    of: Product, x: Tensor, weight: QuantizedTensor, bias: Tensor | None, scheme: TensorScheme, threshold: float
) -> Tensor:
    """LLM.int8(): the columns that reach the threshold by a product in float, the others in integers."""
    outliers = reference.outlier_columns(x, threshold)
    y = by_product(of, x.masked_fill(outliers, 0.0), weight, bias, structs.replace(scheme, outliers=None), None)
    columns = outliers.view(-1, x.shape[-1]).any(0).nonzero().squeeze(1)  # of any matrix
    if not len(columns):
        return y
    kept = torch.where(outliers, x.float(), 0.0)[..., columns]
    return y.add_(kept @ QuantizedTensor(weight.codes[:, columns], weight.scales, weight.scheme).dequantize().T)
