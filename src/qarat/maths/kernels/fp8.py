"""FP8 projections (e4m3 by e4m3) on CUDA, through `torch._scaled_mm`.

The product of the codes is made with scales of one, in float32; a scale a channel and a scale a token are applied
behind it, as `int8` does. It has been run on a CPU only, where the product is exact and slower than one in float. Some
GPUs add products of FP8 in fewer bits than float32 has; so a device is asked for sums that are known, and one that
rounds them is refused.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

from qarat.maths.packing import to_wire
from qarat.maths.rounding import round_
from qarat.maths.tensors import QuantizedTensor, scales_for
from qarat.maths.tiles import Scales, as_matrices
from qarat.values.schemes import Granularity, TensorScheme

_ALONG_REDUCTION = (Granularity(), Granularity(1, None))


def why_not(
    weight: TensorScheme | None, input: TensorScheme | None, shape: tuple[int, int], device: torch.device
) -> str:
    """e4m3 on both sides, one scale a tensor, channel or token; on CUDA, where sums are those of float32."""
    if reason := _refusal(weight, input):
        return reason
    if device.type != "cuda":
        return "is for CUDA"
    return "" if _is_exact() else "sums of FP8 products on this device are not those of float32"


def _refusal(weight: TensorScheme | None, input: TensorScheme | None) -> str:
    if weight is not None and weight.sparse is not None:
        return "computes no sparse part of a weight"
    for scheme in (weight, input):
        if scheme is None or (scheme.format, scheme.outliers) != ("e4m3", None):
            return "computes e4m3 by e4m3"
        if scheme.granularity not in _ALONG_REDUCTION:
            return "computes weights with a scale a tensor or channel, inputs with one a tensor or token"
    return ""


@torch.no_grad()
def linear(
    x: Tensor,
    weight: QuantizedTensor | Tensor,
    bias: Tensor | None,
    input_scheme: TensorScheme | None,
    input_scales: Scales | None,
) -> Tensor:
    """`qarat.maths.kernels.reference.linear`, for the schemes that `why_not` names; same arguments.

    Raises:
        ValueError: Schemes it does not compute, or a static input scheme without scales.
    """
    if not isinstance(weight, QuantizedTensor) or input_scheme is None or _refusal(weight.scheme, input_scheme):
        raise ValueError("the fp8 kernel computes e4m3 weights and inputs; use kernels.choose")
    input_scales = scales_for(x, input_scheme, input_scales)
    matrices = as_matrices(x)
    codes = round_(matrices / input_scales.effective, input_scheme.number_format).flatten(0, 1)
    wire = to_wire(weight.codes, weight.scheme.number_format).view(torch.float8_e4m3fn)
    y = product(codes.to(torch.float8_e4m3fn), wire).view(*matrices.shape[:2], -1)
    y.mul_(input_scales.effective).mul_(weight.scales.effective.view(-1))
    if bias is not None:
        y.add_(bias.float())
    return y.view(*x.shape[:-1], -1)


def product(codes: Tensor, weight: Tensor) -> Tensor:
    """(rows, in) by (out, in), both float8: the sums, (rows, out) float32; padded to multiples of 16."""
    out, inner = weight.shape
    one = torch.ones((), device=codes.device)
    padded = [_pad(codes, -inner % 16, -len(codes) % 16), _pad(weight, -inner % 16, -out % 16).t()]
    sums = torch._scaled_mm(*padded, scale_a=one, scale_b=one, out_dtype=torch.float32)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return sums[: len(codes), :out].contiguous()


def _pad(codes: Tensor, columns: int, rows: int) -> Tensor:
    """With zeros, whose code in e4m3 is that of the integer 0."""
    return pad(codes.view(torch.uint8), (0, columns, 0, rows)).view(torch.float8_e4m3fn)


@functools.cache
def _is_exact() -> bool:
    """Whether CUDA keeps small products beside a large one: 448 · 1 and 511 times 1/16 · 1."""
    codes = torch.full((32, 512), 0.0625)
    codes[:, 0] = 448.0
    ones = torch.ones(32, 512)
    try:
        left, right = (t.to(torch.float8_e4m3fn).cuda() for t in (codes, ones))
        return torch.equal(product(left, right).cpu(), codes @ ones.T)
    except RuntimeError:  # a GPU without FP8
        return False
