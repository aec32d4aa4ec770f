"""Least damage: GPTQ where an error counts by what it does to the model's predictions, not to the layer's output.

GPTQ's Hessian, the mean of x·xᵀ, counts the error of every token and every output alike. To second order the
divergence from float is half the mean of (g·Δy)², g the gradient of the log-probability of a label drawn from the model
itself (`qarat.stages.prices.fisher`). Of an output row alone that is Δw·H_i·Δwᵀ with H_i the mean of g_i²·x·xᵀ. A
Cholesky factor for every row would cost GPTQ's time as often as there are rows, for little (`docs/methods.md`); so all
rows of a projection share the mean of their H_i, which is the mean of ḡ²·x·xᵀ, ḡ² the mean of g_i² over rows. That is
GPTQ's time and one backward pass.

What is left out: that outputs err together (the products g_i·g_k). GuidedQuant (Kim et al. 2025, arXiv 2505.07004) has
the same Hessian for groups of rows, with gradients of the text's own next tokens. Columns go by activation order, the
diagonal of this Hessian; `gptq_ordered` is the same with the other.
"""

from __future__ import annotations

from torch import Tensor

from qarat.maths.tensors import QuantizedTensor
from qarat.stages.rounding import Context, Needs
from qarat.stages.rounding.gptq import heaviest_first, round_columns
from qarat.values.schemes import TensorScheme

NEEDS: Needs = "weighted_moments"


def round_weight(weight: Tensor, scheme: TensorScheme, context: Context) -> QuantizedTensor:
    """Round the columns by weighted moments; protocol `qarat.stages.rounding.Rounding`."""
    moments = context.weighted_moments
    return round_columns(weight, scheme, moments, heaviest_first(moments))
