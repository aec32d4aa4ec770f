"""Round to nearest: every weight goes to the nearest number that its scale allows."""

from torch import Tensor

from qarat.schemes import TensorScheme
from qarat.tensors import QuantizedTensor, quantize_tensor

__all__ = ["quantize_weight"]


def quantize_weight(weight: Tensor, scheme: TensorScheme) -> QuantizedTensor:
    """Quantize a weight.

    Args:
        weight: (out, in), any float dtype.
        scheme: Of the weight.
    """
    return quantize_tensor(weight.float(), scheme)
