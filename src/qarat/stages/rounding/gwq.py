"""GWQ: the weights with the largest gradient stay in float16, the others are rounded to nearest.

Shao et al. 2024, arXiv 2411.00850. The gradient is that of the loss on the calibration tokens with their own next
tokens, summed over all of them; the share that stays is the scheme's, of each matrix by itself, by magnitude of the
gradient. The paper names 1 per cent (``int4/g128/sparse-1/round-gwq``); whether it takes it of a matrix or of the
model, and gradients as they are or times the weight, could not be read.
"""

from __future__ import annotations

from torch import Tensor

from qarat.maths.sparse import highest
from qarat.maths.tensors import QuantizedTensor
from qarat.stages.rounding import Context, Needs
from qarat.stages.rounding.nearest import round_besides
from qarat.values.schemes import TensorScheme

NEEDS: Needs = "gradient"


def round_weight(weight: Tensor, scheme: TensorScheme, context: Context) -> QuantizedTensor:
    """Keep the share of the largest gradients; protocol `qarat.stages.rounding.Rounding`."""
    gradient = context.gradient.to(weight.device)
    return round_besides(weight, scheme, highest(gradient.abs(), scheme.sparse_count(*weight.shape)))


def why_not(scheme: TensorScheme) -> str:
    """It needs to be told how many stay (`qarat.stages.rounding.why_not`)."""
    return "" if scheme.sparse else "it keeps a share of the weights in float16, and none is named; add sparse-1"
