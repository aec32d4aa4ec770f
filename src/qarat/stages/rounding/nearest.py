"""Round to nearest: every weight goes to the nearest number that its scale allows.

Where no scale reaches beyond a row, the rows are taken in bands: what is looked at five times over stays in the
processor's cache, and nothing as large as the weight is made but its codes.
"""

import torch
from torch import Tensor

from qarat.maths.tensors import QuantizedTensor, quantize_tensor
from qarat.maths.tiles import Scales
from qarat.stages.rounding import Context, Needs
from qarat.values.schemes import TensorScheme

NEEDS: Needs = ""

# Elements of a band. On a CPU 1 MB of float32, which its second cache holds; on a GPU few large bands cost less.
BAND = {"cpu": 1 << 18, "cuda": 1 << 26}


def round_weight(weight: Tensor, scheme: TensorScheme, context: Context) -> QuantizedTensor:
    """Round each weight by itself; protocol `qarat.stages.rounding.Rounding`."""
    rows = max(1, BAND[weight.device.type] // weight.shape[1])
    if scheme.granularity.rows != 1 or scheme.nests_scales or rows >= len(weight):
        return quantize_tensor(weight.float(), scheme)
    bands = [quantize_tensor(band, scheme) for band in weight.split(rows)]
    zero_points = [band.scales.zero_point for band in bands if band.scales.zero_point is not None]
    scales = Scales(
        torch.cat([band.scales.scale for band in bands]), torch.cat(zero_points) if zero_points else None, None
    )
    return QuantizedTensor(torch.cat([band.codes for band in bands]), scales, scheme)
