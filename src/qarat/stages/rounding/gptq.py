"""GPTQ: a column is rounded, and the columns behind it take up what that did to the output.

Frantar et al. 2022, arXiv 2210.17323. With H the second moments of the inputs, rounding a weight row w to q costs
(w − q) H (w − q)ᵀ in squared output error, and rows do not concern each other. Once column j is fixed at q_j, the rest
of the row is best off, to second order, at

    w_k − (w_j − q_j) / U_jj · U_jk   for k > j,      H⁻¹ = Uᵀ U, U upper triangular

(the paper's section 3.3, step 3: row j of the Cholesky factor is what eliminating columns 0 … j−1 one by one leaves of
H⁻¹). Columns go from left to right, as they lie; `gptq_ordered` takes them in another order. Updates of columns beyond
the current band are gathered into one product. That is the same sum in another order, so codes do not depend on the
band; in float64 not even by rounding, but for ties.

Scales are those that `nearest` uses, chosen from the weight as it is: a group's scale must be known wherever and
whenever its columns come. With H a multiple of the identity nothing is passed on, and the codes are those of `nearest`.

H is damped, so that one that is singular (channels that go together) has an inverse. Fewer tokens than channels make
it singular whatever the model reads, and are refused (`qarat.stages.rounding.check_roundings`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qarat.maths.rounding import decode, encode
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import per_element
from qarat.stages.rounding import Context, Needs
from qarat.values.schemes import TensorScheme

NEEDS: Needs = "moments"

DAMPING = 0.01  # of the mean of H's diagonal, added to it: the authors' percdamp
BAND = 32  # columns between two updates of all that follow; the authors' 128 is slower here, and gives the same codes


def round_weight(weight: Tensor, scheme: TensorScheme, context: Context) -> QuantizedTensor:
    """Round one column after the other; protocol `qarat.stages.rounding.Rounding`."""
    return round_columns(weight, scheme, context.moments)


def round_columns(
    weight: Tensor, scheme: TensorScheme, moments: Tensor, order: Tensor | None = None
) -> QuantizedTensor:
    """Round one column after the other, each passing on its error as the moments say.

    Args:
        weight: (out, in), any float dtype; not written to.
        scheme: Of the weight.
        moments: (in, in) float32, symmetric, not negative; what is minimised is (w − q) · moments · (w − q)ᵀ.
        order: Every column's number, (in,), in the order in which they are rounded; default as they lie.
    """
    weight = weight.detach().float()
    scales = choose_scale(weight, scheme)
    order = torch.arange(weight.shape[1]) if order is None else order
    order = order.to(weight.device)

    # All that follows is (in, out), in the order of rounding, so that a column's numbers lie side by side.
    def by_column(values: Tensor) -> Tensor:
        return per_element(values, scheme.granularity, weight.shape).T[order].contiguous()

    steps = by_column(scales.effective)
    zeros = None if scales.zero_point is None else by_column(scales.zero_point)
    factor = inverse_factor(moments.to(weight.device)[order][:, order])
    left = weight.T[order].double()  # what is still to be rounded, with the errors of what has been
    rounded = torch.empty_like(left, dtype=torch.uint8)
    for first in range(0, len(left), BAND):
        band = slice(first, min(first + BAND, len(left)))
        errors = torch.empty_like(left[band])
        for j in range(band.start, band.stop):
            # In float32 and by a division, as `quantize_tensor` does it, so that without errors the codes are equal.
            units = left[j].float() / steps[j]
            rounded[j] = encode(units if zeros is None else units + zeros[j], scheme.number_format)
            value = decode(rounded[j], scheme.number_format)
            value = (value if zeros is None else value - zeros[j]) * steps[j]
            errors[j - first] = (left[j] - value) / factor[j, j]
            left[j : band.stop].addr_(factor[j, j : band.stop], errors[j - first], alpha=-1)
        left[band.stop :].addmm_(factor[band, band.stop :].T, errors, alpha=-1)
    codes = torch.empty_like(weight, dtype=torch.uint8)
    codes[:, order] = rounded.T
    return QuantizedTensor(codes, scales, scheme)


def heaviest_first(moments: Tensor) -> Tensor:
    """The columns by their second moment, the largest first, equal ones as they lie; (in,) int64."""
    return moments.diagonal().argsort(descending=True, stable=True)


def inverse_factor(moments: Tensor) -> Tensor:
    """U of H⁻¹ = Uᵀ U, upper triangular, H the damped moments; (in, in) float64.

    A channel that calibration never saw gets a diagonal of 1: nothing is known of it, so it neither gives nor takes.

    Args:
        moments: (in, in), symmetric, not negative.
    """
    damped = moments.double().clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
