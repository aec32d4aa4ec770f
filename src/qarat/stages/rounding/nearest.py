"""Round to nearest: every weight goes to the nearest number that its scale allows.

Of a learned format (`kmeans4`) the numbers are those nearest to the weights: k-means in which all count alike (against
linear numbers in arXiv 2010.07109). A sparse part takes the weights of the largest magnitude.

Where no scale reaches beyond a row, the rows are taken in bands: what is looked at five times over stays in the
processor's cache, and nothing as large as the weight is made but its codes.
"""

from dataclasses import replace

import torch
from torch import Tensor

from qarat.maths.sparse import Sparse, highest
from qarat.maths.tables import find_tables
from qarat.maths.tensors import QuantizedTensor, quantize_tensor
from qarat.maths.tiles import Scales
from qarat.stages.rounding import Context, Needs
from qarat.values.schemes import TensorScheme

NEEDS: Needs = ""

# Elements of a band. On a CPU 1 MB of float32, which its second cache holds; on a GPU few large bands cost less.
BAND = {"cpu": 1 << 18, "cuda": 1 << 26}


def round_weight(weight: Tensor, scheme: TensorScheme, context: Context) -> QuantizedTensor:
    """Round each weight by itself; protocol `qarat.stages.rounding.Rounding`."""
    kept = None if scheme.sparse is None else highest(weight.abs(), scheme.sparse_count(*weight.shape))
    return round_besides(weight, scheme, kept)


def why_not(scheme: TensorScheme) -> str:
    """It rounds to everything that there is (`qarat.stages.rounding.why_not`)."""
    return ""


def round_besides(
    weight: Tensor, scheme: TensorScheme, kept: Tensor | None, importance: Tensor | None = None
) -> QuantizedTensor:
    """Round what is not kept in the sparse part to nearest; what is kept is 0 there, and counts for nothing.

    Args:
        weight: (out, in), any float dtype; not written to.
        scheme: Of the weight.
        kept: Which weights go into the sparse part, (out, in) bool; None where there is none.
        importance: What a squared error counts where tables are learned, (out, in), not negative; default 1.
    """
    weight = weight.detach().float()
    rest = weight if kept is None else weight.masked_fill(kept, 0.0)
    if scheme.number_format.learned:
        counts = torch.ones_like(weight) if importance is None else importance
        codes, scales = find_tables(rest, scheme, counts if kept is None else counts.masked_fill(kept, 0.0))
        rounded = QuantizedTensor(codes, scales, scheme)
    else:
        rounded = _round_in_bands(rest, scheme)
    return rounded if kept is None else replace(rounded, sparse=Sparse.of(weight - rounded.dequantize(), kept))


def _round_in_bands(weight: Tensor, scheme: TensorScheme) -> QuantizedTensor:
    rows = max(1, BAND[weight.device.type] // weight.shape[1])
    if scheme.granularity.rows != 1 or scheme.nests_scales or rows >= len(weight):  # some have one more above all
        return quantize_tensor(weight, scheme)
    bands = [quantize_tensor(band, scheme) for band in weight.split(rows)]
    zero_points = [band.scales.zero_point for band in bands if band.scales.zero_point is not None]
    scales = Scales(
        torch.cat([band.scales.scale for band in bands]), torch.cat(zero_points) if zero_points else None, None
    )
    return QuantizedTensor(torch.cat([band.codes for band in bands]), scales, scheme)
