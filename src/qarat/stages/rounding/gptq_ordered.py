"""GPTQ with activation order: columns whose inputs are large are rounded first.

The authors' ``act_order`` (github.com/IST-DASLab/gptq), with scales of the weight as it is, as their ``static_groups``
has it: what comes first is rounded with the least error of others on it, and has the most columns left that may take
up its own. Codes and scales lie where they would without, so files and kernels are the same.
"""

from __future__ import annotations

from torch import Tensor

from qarat.maths.tensors import QuantizedTensor
from qarat.stages.rounding import Context, Needs
from qarat.stages.rounding.gptq import heaviest_first, round_columns
from qarat.values.schemes import TensorScheme

NEEDS: Needs = "moments"


def round_weight(weight: Tensor, scheme: TensorScheme, context: Context) -> QuantizedTensor:
    """Round the columns by their inputs' second moments; protocol `qarat.stages.rounding.Rounding`."""
    moments = context.moments
    return round_columns(weight, scheme, moments, heaviest_first(moments))
