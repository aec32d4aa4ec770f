"""What a quantized projection, and a quantized attention product, means.

Operands are replaced by the numbers their codes stand for, and multiplied in float32. That is not how engines compute,
but it is what they approximate: an int8 kernel differs from it by 4e-7 of the maximum, while the same simulation in
bfloat16 would differ by 4e-3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qarat.schemes import MatmulScheme, TensorScheme
from qarat.tensors import QuantizedTensor, Scales, fake_quantize

__all__ = ["linear", "matmul_operands", "supports"]


def supports(weight: TensorScheme | None, input: TensorScheme | None, device: torch.device) -> bool:
    """Every projection, on every device."""
    return True


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
    x = x.float() if input_scheme is None else fake_quantize(x, input_scheme, input_scales)
    w = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.float()
    return torch.nn.functional.linear(x, w, None if bias is None else bias.float())


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
