"""What a quantized projection, and a quantized attention product, means.

Operands are replaced by the numbers their codes stand for, and multiplied in float32. That is not how engines compute,
but it is what they approximate: an int8 kernel differs from it by 4e-7 of the maximum, while the same simulation in
bfloat16 would differ by 4e-3.

LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) is a scheme of the input here, ``a=int8/token/outliers-6``: columns
in which any token of the matrix reaches 6 are multiplied in float, the others rounded with scales in which those have
no part. The paper takes all tokens of a batch for one matrix, and so does bitsandbytes; here each sequence is one of
its own, so that a result does not depend on what else was in the batch, and one token alone when text is generated. As
in bitsandbytes' inference, the weight's columns that meet them are those of the rounded weight, since no other is
kept; but its scales leave out only the large elements of such columns, not the columns, which the paper does.
"""

from __future__ import annotations

import torch
from msgspec import structs
from torch import Tensor

from qarat.maths.tensors import QuantizedTensor, fake_quantize
from qarat.maths.tiles import Scales
from qarat.values.schemes import MatmulScheme, TensorScheme


def why_not(
    weight: TensorScheme | None, input: TensorScheme | None, shape: tuple[int, int], device: torch.device
) -> str:
    """Nothing: every projection, on every device."""
    return ""


@torch.no_grad()
def linear(
    x: Tensor,
    weight: QuantizedTensor | Tensor,
    bias: Tensor | None,
    input_scheme: TensorScheme | None,
    input_scales: Scales | None,
) -> Tensor:
    """A projection: quantized input times quantized weight, in float32.

    Args:
        x: (rows, in) or (batch, …, in), floating; each of the batch is quantized by itself.
        weight: (out, in), quantized or left in float.
        bias: (out,) or None; always in float.
        input_scheme: How the input is quantized; None leaves it in float.
        input_scales: Scales of a static input scheme; None computes them from ``x``.

    Returns:
        (rows, out) or (batch, …, out), float32.
    """
    x = x.float() if input_scheme is None else _quantized_input(x, input_scheme, input_scales)
    w = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.float()
    return torch.nn.functional.linear(x, w, None if bias is None else bias.float())


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """Which columns LLM.int8() leaves in float: those with a magnitude of at least the threshold.

    Args:
        x: (rows, in) or (batch, …, in), floating; each of the batch is a matrix by itself.
        threshold: Of the magnitude.

    Returns:
        (1, in) or (batch, 1, …, in), bool: all axes between the batch and the columns are 1.
    """
    rows = tuple(range(0 if x.dim() == 2 else 1, x.dim() - 1))
    return x.abs().amax(rows, keepdim=True) >= threshold


def _quantized_input(x: Tensor, scheme: TensorScheme, scales: Scales | None) -> Tensor:
    """The numbers that an input's codes stand for, outlier columns as they are; shape of ``x``, float32."""
    if scheme.outliers is None:
        return fake_quantize(x, scheme, scales)
    outliers = outlier_columns(x, scheme.outliers)
    rest = fake_quantize(x.masked_fill(outliers, 0.0), structs.replace(scheme, outliers=None), scales)
    return torch.where(outliers, x.float(), rest)


@torch.no_grad()
def kept(x: Tensor, scheme: TensorScheme, scales: Scales | None = None) -> Tensor:
    """Keys or values as a cache keeps them: each token a row of all heads' channels.

    With scales in two dimensions, what is quantized of a channel with shift δ and scale s is (x - δ) / s, in groups by
    token, and what is read is that times s plus δ: static by channel and dynamic by token
    (WKVQuant, Yue et al. 2024, arXiv 2402.12065). Where s and δ come from is ours; theirs are learned.

    Args:
        x: (windows, heads, tokens, channels), floating.
        scheme: Of the cache.
        scales: Of a static scheme, or of the channels of one in two dimensions.

    Returns:
        Shape of ``x``, float32.
    """
    windows, heads, tokens, channels = x.shape
    rows = x.transpose(1, 2).reshape(windows, tokens, heads * channels)
    if scheme.two_dimensional:
        if scales is None or scales.shift is None:
            raise ValueError(
                f"{scheme.spell('c')}: what shifts and scales channels comes from calibration, and is missing"
            )
        level = fake_quantize(
            (rows.float() - scales.shift) / scales.scale, structs.replace(scheme, two_dimensional=False)
        )
        rows = level * scales.scale + scales.shift
    else:
        rows = fake_quantize(rows, scheme, scales)
    return rows.view(windows, tokens, heads, channels).transpose(1, 2)


@torch.no_grad()
def matmul_operands(
    left: Tensor,
    right: Tensor,
    scheme: MatmulScheme,
    left_scales: Scales | None = None,
    right_scales: Scales | None = None,
) -> tuple[Tensor, Tensor]:
    """Both operands of ``left @ right`` as quantization leaves them.

    Groups run along the axis that the product sums over, so the right operand is quantized through its transpose: its
    "rows" are its columns. For scores = Q·Kᵀ those are K's tokens; for probabilities·V they are V's channels, whose
    groups then run over tokens.

    Args:
        left: (batch, …, rows, inner), floating.
        right: (batch, …, inner, cols), floating.
        scheme: Schemes of the two; None leaves an operand in float.
        left_scales: Scales of a static left scheme.
        right_scales: Scales of a static right scheme, as of the transpose.

    Returns:
        The two operands, shapes as given, float32.
    """
    left = left.float() if scheme.left is None else fake_quantize(left, scheme.left, left_scales)
    if scheme.right is None:
        return left, right.float()
    return left, fake_quantize(right.transpose(-1, -2), scheme.right, right_scales).transpose(-1, -2)


def matmul(
    left: Tensor,
    right: Tensor,
    scheme: MatmulScheme,
    left_scales: Scales | None = None,
    right_scales: Scales | None = None,
) -> Tensor:
    """An attention product: quantized left times quantized right, (batch, …, rows, cols), float32.

    Arguments as `matmul_operands`.
    """
    return torch.matmul(*matmul_operands(left, right, scheme, left_scales, right_scales))
