"""SqueezeLLM: tables by row, found where errors cost most, and the weights that no table holds well kept beside.

Kim et al. 2023, arXiv 2306.07629. An error of a weight counts by the diagonal of the Fisher information, F = mean of
g²·x² over tokens: k-means of each row, or group, with F as weights (the paper's equation 4). The paper takes squared
gradients of the loss of whole sequences on their own text; here it is each token's, of labels drawn from the model
itself, as in the prices of `qarat.stages.prices.fisher`, of whose sum ½·F·Δw² is the part without products. k-means is
exact (`qarat.maths.kmeans`), not sklearn's from random starts.

With a sparse part (`sparse-0.45`): the 0.05 per cent of the weights with the largest F, then those of the largest
magnitude. The paper's rule for the second, beyond k interquartile ranges with k such that 0.4 per cent are, is the same
weights (`quantization/generate_outlier_config.py` of github.com/SqueezeAILab/SqueezeLLM), as the quartiles of a matrix
are all but symmetric. What is kept is 0 to the tables, and counts for nothing.
"""

from __future__ import annotations

from torch import Tensor

from qarat.maths.sparse import highest
from qarat.maths.tensors import QuantizedTensor
from qarat.stages.rounding import Context, Needs
from qarat.stages.rounding.nearest import round_besides
from qarat.values.schemes import TensorScheme

NEEDS: Needs = "fisher"

SENSITIVE = 0.05  # per cent of the weights, those of the largest F


def round_weight(weight: Tensor, scheme: TensorScheme, context: Context) -> QuantizedTensor:
    """Find each row's table; protocol `qarat.stages.rounding.Rounding`."""
    fisher = context.fisher.to(weight.device)
    kept = None if scheme.sparse is None else _kept(weight.detach().float(), fisher, scheme.sparse)
    return round_besides(weight, scheme, kept, fisher)


def why_not(scheme: TensorScheme) -> str:
    """It finds tables, and needs a format that has some (`qarat.stages.rounding.why_not`)."""
    if scheme.number_format.learned:
        return ""
    return f"it finds tables, and {scheme.format} is one; write kmeans4/channel or kmeans3/channel"


def _kept(weight: Tensor, fisher: Tensor, share: float) -> Tensor:
    """The weights of the sparse part, bool in the shape of the weight; ``share`` in per cent of them."""
    count = max(1, round(weight.numel() * share / 100))
    sensitive = highest(fisher, min(count, round(weight.numel() * SENSITIVE / 100)))
    return sensitive | highest(weight.abs().masked_fill(sensitive, -1.0), count - int(sensitive.sum()))
